"""One run on several processes, started by torchrun: the same result, and every process may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, result
from safetensors.torch import load_file

RUN = (*TINY, "gradient=reverse", "dummy.images=pixels", "outer.refine=0")
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def start(folder: Path, processes: int, *words: str, named: bool = True) -> subprocess.Popen[str]:
    where = [f"hydra.run.dir={folder}"] if named else []
    return subprocess.Popen(
        [*LAUNCH, str(processes), "-m", "simudy", *RUN, *words, *where],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder.parent,
    )


@pytest.mark.parametrize(
    "words", [("parallel=images",), ("parallel=steps", "attack=anchored", "attack.paths=2")]
)
def test_two_processes_find_what_one_finds(cli, tmp_path, words):
    running = start(tmp_path / "two", 2, *words)
    assert cli(*RUN, *words[1:], f"hydra.run.dir={tmp_path / 'one'}", tiny=False).code == 0
    said = "".join(running.communicate(timeout=300))
    assert running.returncode == 0, said
    assert "Traceback" not in said and said.count("finished after") == 1  # one of them speaks
    one, two = result(tmp_path / "one"), result(tmp_path / "two")
    assert two["distance"] == pytest.approx(one["distance"], rel=1e-4)
    assert not list(tmp_path.glob("runs/*"))  # none wrote anywhere else


def test_processes_have_one_directory_where_none_is_named(tmp_path):
    _, err = (running := start(tmp_path / "none", 2, "parallel=images", named=False)).communicate()
    assert running.returncode == 0, err
    assert len(list(tmp_path.glob("runs/*/*"))) == 1


@pytest.mark.parametrize("word", ["parallel=images", "parallel=steps"])
def test_what_torchrun_has_not_started_says_how_to(cli, word):
    assert f"torchrun --nproc-per-node 2 -m simudy {word}" in cli(*RUN, word, tiny=False).error


@pytest.mark.slow
def test_steps_that_wait_for_each_other_are_not_shared(tmp_path):
    running = start(tmp_path / "run", 2, "parallel=steps")
    out, err = running.communicate(timeout=300)
    assert running.returncode and (out + err).count("set attack=anchored, or parallel=images") == 1


@pytest.mark.slow
def test_processes_without_a_share_are_refused_once(tmp_path):
    out, err = (running := start(tmp_path / "run", 2)).communicate(timeout=300)
    assert running.returncode and (out + err).count("add parallel=images") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "how"), [(2, signal.SIGKILL), (3, signal.SIGKILL), (2, signal.SIGINT)]
)
@pytest.mark.parametrize("words", [("parallel=images",), ("parallel=steps", "attack=anchored")])
def test_a_stopped_run_goes_on_on_any_number_of_processes(tmp_path, processes, how, words):
    """Bit for bit on as many as before, else up to rounding."""
    words = (*words, "outer.iterations=400", "intervals.checkpoint=0")
    running = start(tmp_path / "cut", 2, *words)
    _wait_for(tmp_path / "cut" / "history.csv", rows=20)
    if how == signal.SIGINT:
        running.send_signal(how)
    else:
        os.kill(_children(running.pid)[-1], how)
    _, err = running.communicate(timeout=300)
    assert running.returncode and err.count("simudy: ") <= 1, err
    assert not (tmp_path / "cut" / "result.json").exists() or how == signal.SIGINT
    for folder, count in (("cut", processes), ("whole", 2)):
        _, err = (running := start(tmp_path / folder, count, *words)).communicate(timeout=300)
        assert running.returncode == 0, err
    cut, whole = (load_file(tmp_path / f / "reconstruction.safetensors") for f in ("cut", "whole"))
    off = (cut["images"] - whole["images"]).norm() / whole["images"].norm()
    assert off == 0 if processes == 2 else off < 0.05


def _wait_for(history: Path, *, rows: int) -> None:
    end = time.monotonic() + 200
    while not history.exists() or len(history.read_text().splitlines()) < rows:
        assert time.monotonic() < end
        time.sleep(0.1)


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]
