"""Launchers and sweepers that are installed apart: missing ones, lost workers, stored studies."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from hydra.types import RunMode

from simudy.app.settings import factories
from simudy.app.sweep import grid, optional

MAIN = "from simudy.app.cli import main; main()"
NET = """
import os, pathlib, signal
from torch import nn
class Net(nn.Sequential):
    def __init__(self, deadly="never", width=8):
        noted = pathlib.Path("DIED")
        if deadly == "always" or deadly == "once" and not noted.exists():
            noted.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 2))
"""


def launched(folder, *words):
    """The command in a process of its own, in ``folder``."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", MAIN, "-m", *words, "hydra.sweep.dir=s"]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.parametrize("word", ["hydra/launcher=ray", "hydra/sweeper=optuna"])
def test_what_is_missing_is_named_with_its_install(cli, monkeypatch, word):
    monkeypatch.setattr(optional, "_is_there", lambda module: False)
    extra = "ray" if "ray" in word else "sweeps"
    assert f"pip install 'simudy[{extra}]'" in cli("-m", word, "seed=0,1").error


def test_an_interval_is_one_job_at_a_time():
    words = ["outer.lr=interval(0.1,1)", "seed=0,1,2"]
    assert grid.count(words) == 3
    assert list(grid.combinations(words))[1] == ("outer.lr=interval(0.1,1)", "seed=1")


@pytest.mark.parametrize(
    ("mode", "num", "device"), [(RunMode.MULTIRUN, 5, "cuda:2"), (RunMode.RUN, 0, "cuda")]
)
def test_the_jobs_of_a_sweep_take_turns_on_the_gpus(monkeypatch, mode, num, device):
    """And processes of one run keep the one that torchrun gave them."""
    here = SimpleNamespace(mode=mode, job=SimpleNamespace(num=num))
    hydra = SimpleNamespace(initialized=lambda: True, get=lambda: here)
    monkeypatch.setattr(factories, "HydraConfig", hydra)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert str(factories.device("auto")) == device


@pytest.mark.slow
def test_a_stored_search_goes_on(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    if int(version("sqlalchemy").partition(".")[0]) > 1:
        pytest.skip("optuna 2 stores studies through SQLAlchemy 1: pip install 'simudy[sweeps]'")
    sweeper = {"storage": "sqlite:///study.db", "study_name": "lr", "n_trials": 2, "n_jobs": 1}
    words = [f"hydra.sweeper.{key}={value}" for key, value in sweeper.items()]
    words += ["hydra/sweeper=optuna", "outer.lr=interval(0.01,0.3)", *TINY]
    for trials in (2, 4):
        done = launched(tmp_path, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        rows = sqlite3.connect(tmp_path / "study.db").execute("select state from trials")
        assert [state for (state,) in rows] == ["COMPLETE"] * trials
        assert len(list(tmp_path.glob("s/*/result.json"))) == trials


def with_ray(folder, *words):
    try:
        version("hydra-ray-launcher")
    except PackageNotFoundError:
        pytest.skip("ray is an install of its own: pip install 'simudy[ray]'")
    (folder / "net_of_ray_test.py").write_text(NET.replace("DIED", str(folder / "died")))
    tiny = [word for word in TINY if not word.startswith("model.width")]
    own = ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", *tiny]
    own.append("model._target_=net_of_ray_test.Net")
    return launched(folder, *own, *words)


@pytest.mark.slow
def test_ray_begins_a_job_anew_whose_worker_was_killed(tmp_path):
    words = ("seed=range(12)", "+model.deadly=never,once")
    done = with_ray(tmp_path, *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert (tmp_path / "died").exists()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/result.json")}
    assert len(finished) == 24
    lost = next(iter(finished))
    lost.unlink()  # and a relaunch runs what is missing alone
    assert with_ray(tmp_path, *words).returncode == 0
    again = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/result.json")}
    assert again.keys() == finished.keys()
    assert {path for path in again if again[path] != finished[path]} == {lost}


@pytest.mark.slow
def test_ray_names_a_job_that_is_killed_alone_too(tmp_path):
    done = with_ray(tmp_path, "seed=0,1", "+model.deadly=never,always")
    assert done.returncode == 2 and "Traceback" not in done.stdout, done.stdout + done.stderr
    assert len(list(tmp_path.glob("s/*/result.json"))) == 2
    assert done.stdout.count("its process was killed, alone too") == 2
