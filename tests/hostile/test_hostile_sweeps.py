"""Sweeps whose jobs end their own process, or are killed; two processes in one directory."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from test_hostile_environment import MAIN
from verdict import TINY, environment

NET = """
import os, signal, sys
from torch import nn
class Net(nn.Sequential):
    def __init__(self, deadly=False, width=8, how="kill"):
        if deadly and how == "exit":
            sys.exit(3)
        if deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 2))
"""
OPTIONS = [word for word in TINY if not word.startswith(("model.width", "hydra.run.dir"))]
OWN = [*OPTIONS, "model._target_=net_of_sweep_test.Net", "hydra.sweep.dir=s"]


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    """A network that takes its process along, where it is told to."""
    (tmp_path / "net_of_sweep_test.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("net_of_sweep_test", None)


def results(folder) -> int:
    return len(list(folder.glob("s/*/result.json")))


def test_a_job_that_calls_exit(cli, tmp_path, deadly):
    argv = ["-m", *OWN, "+model.how=exit", "+model.deadly=true,false", "seed=0,1"]
    first = cli(*argv, tiny=False)
    assert first.code == 2 and "code of yours called sys.exit(3)" in first.out
    assert results(tmp_path) == 2
    again = cli(*argv, tiny=False)
    assert again.code == 2 and again.out.count("already finished") == 2


@pytest.mark.slow
def test_a_worker_that_is_killed(tmp_path, deadly):
    """The others run, the killer is named, and a relaunch tries what is missing alone."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    argv = ["-m", *OWN, "+model.deadly=false,true", "seed=0,1,2", "hydra/launcher=joblib"]
    command = [sys.executable, "-c", MAIN, *argv, "hydra.launcher.n_jobs=2"]
    for _ in range(2):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr, done
        assert results(tmp_path) == 3, done.stdout
        assert done.stdout.count("its process was killed, alone too") == 3, done.stdout
        assert "3 failed; simudy-sweep" in done.stdout
        assert not list(tmp_path.glob("s/*/.begun"))


def test_no_workers_at_all(cli):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    argv = ["-m", *OPTIONS, "hydra/launcher=joblib", "hydra.launcher.n_jobs=0", "seed=0,1"]
    assert "n_jobs == 0" in cli(*argv, tiny=False).error


def test_two_processes_in_one_directory(cli, tmp_path):
    from simudy.app.store.lock import held

    with held(tmp_path / "run", wait=False):
        refused = cli(*TINY, tiny=False).error
        assert (
            f"run is in use by process {os.getpid()} on" in refused and "hydra.run.dir" in refused
        )
    assert cli(*TINY, tiny=False).code == 0


@pytest.mark.slow
def test_twenty_kills_of_sweeps(tmp_path):
    """Killed outright, workers included, at random moments: bits equal, and nothing done twice."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    rng, kills, sweeps = random.Random(0), 0, 0
    word = [w for w in TINY if not w.startswith(("hydra.run.dir", "outer.iterations"))]
    argv = ["-m", *word, "seed=range(4)", "outer.iterations=20", "intervals.checkpoint=0"]
    base = [sys.executable, "-c", MAIN, *argv, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    quiet = {"cwd": tmp_path, "env": environment(), "stdout": subprocess.DEVNULL}
    began = time.monotonic()
    subprocess.run([*base, "hydra.sweep.dir=whole"], check=True, **quiet)  # type: ignore[call-overload]
    takes = time.monotonic() - began
    while kills < 20:
        sweeps += 1
        folder = tmp_path / f"sweep{sweeps}"
        while len(list(folder.glob("*/result.json"))) < 4:
            process = subprocess.Popen(  # type: ignore[call-overload]
                [*base, f"hydra.sweep.dir={folder}"], start_new_session=True, **quiet
            )
            try:
                assert process.wait(timeout=rng.uniform(0.1, 1.3) * takes) == 0
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
            time.sleep(0.1)
        for path in sorted((tmp_path / "whole").glob("*/reconstruction.safetensors")):
            one, other = load_file(path), load_file(folder / path.parent.name / path.name)
            assert one.keys() == other.keys()
            assert all(torch.equal(one[k], other[k]) for k in one), path
