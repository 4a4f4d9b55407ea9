"""Killed at any moment and launched again in the same directory, a run ends where it would have."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY, result
from safetensors.torch import load_file

from simudy.app.store import checkpoint

RUN = (
    *TINY,
    "outer.iterations=30",
    "intervals.checkpoint=0",
    "dummy.learn=[lr]",
    "recipe.batch_size=2",
    "hydra.run.dir=run",
)

# A process that kills itself, with no chance to tidy up, at the n-th call of a function: before it,
# or once it is done.
KILLER = """
import importlib, os, signal, sys
module, name, n, when, *argv = sys.argv[1:]
left, place = int(n), importlib.import_module(module)
for part in name.split(".")[:-1]:
    place = getattr(place, part)
inner = getattr(place, name.split(".")[-1])
def deadly(*args, **kwargs):
    global left
    left -= 1
    if left == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    done = inner(*args, **kwargs)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(place, name.split(".")[-1], deadly)
from simudy.app.cli import run_cli
sys.exit(run_cli(argv))
"""
MOMENTS = (
    (
        "simudy.app.tasks.prepare",
        "train",
        1,
        "after",
    ),  # the victim is trained, nothing of it is on disk
    ("simudy.attack.evidence", "save_file", 2, "after"),  # half of the evidence is
    ("simudy.attack.search", "Search.step", 1, "after"),
    ("os", "fsync", 4, "before"),  # a checkpoint's draft is not yet whole
    (
        "simudy.app.store.checkpoint",
        "write_atomically",
        3,
        "before",
    ),  # the old checkpoint has moved aside, no new one is there
    ("simudy.app.tasks.finish", "write_json", 1, "before"),
)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def spoken(path: Path) -> tuple[torch.Tensor, ...]:
    """All tensors of a reconstruction."""
    return tuple(
        tensor for _, tensor in sorted(load_file(path / "reconstruction.safetensors").items())
    )


@pytest.fixture
def whole(cli, tmp_path):
    """The tensors of a run that nobody disturbed."""
    assert cli(*RUN[:-1], "hydra.run.dir=whole", tiny=False).code == 0
    return spoken(tmp_path / "whole")


def test_killed_again_and_again(cli, tmp_path, whole):
    """One run, killed at one moment after another, each launch going on from the last."""
    for module, name, n, when in MOMENTS:
        command = [sys.executable, "-c", KILLER, module, name, str(n), when, *RUN]
        killed = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment()
        )
        assert killed.returncode == -signal.SIGKILL, (module, name, killed.stdout, killed.stderr)
        assert not (tmp_path / "run/result.json").exists()
    last = cli(*RUN, tiny=False)
    assert last.code == 0 and "going on from iteration 30" in last.out
    assert all(map(torch.equal, spoken(tmp_path / "run"), whole))
    assert result(tmp_path / "run")["iterations"] == 30
    rows = (tmp_path / "run/history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(i + 1) for i in range(30)]


@pytest.mark.slow
def test_killed_at_random(cli, tmp_path, whole):
    rng, kills = random.Random(0), 0
    command = [sys.executable, "-c", "from simudy.app.cli import main; main()", *RUN]
    while not (tmp_path / "run/result.json").exists() and kills < 40:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(1.0, 8.0))
        process.kill()
        process.wait()
        kills += 1
    assert cli(*RUN, tiny=False).code == 0
    assert all(map(torch.equal, spoken(tmp_path / "run"), whole))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_the_best_so_far_is_scored_and_the_next_launch_goes_on(
    cli, tmp_path, whole, monkeypatch, number
):
    from simudy.attack.search import Search

    step = Search.step

    def interrupted(self):
        if self.iteration == 11:
            signal.raise_signal(number)
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "step", interrupted)
        stopped = cli(*RUN, tiny=False)
    assert stopped.code == 130 and "goes on from here" in stopped.out
    found = result(tmp_path / "run")
    assert (found["status"], found["iterations"]) == ("interrupted", 12)
    assert found["ssim_paper"] is not None and (tmp_path / "run/gallery.png").exists()
    resumed = cli(*RUN, tiny=False)
    assert resumed.code == 0 and "going on from iteration 12" in resumed.out
    assert result(tmp_path / "run")["status"] == "finished"
    assert all(map(torch.equal, spoken(tmp_path / "run"), whole))


def damage_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_by_flipping(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage", [damage_by_cutting, damage_by_flipping, lambda path: path.write_bytes(b"")]
)
def test_a_damaged_checkpoint(tmp_path, caplog, damage):
    path = tmp_path / "checkpoint"
    assert checkpoint.load(path) is None and not caplog.records
    for i in range(3):
        checkpoint.save(path, {"i": i, "tensor": torch.full((100,), float(i))})
    damage(path)
    state = checkpoint.load(path)
    assert state is not None and state["i"] == 1
    assert "checkpoint is damaged: using the one before it" in caplog.text
    checkpoint.save(path, {"i": 7})
    assert (checkpoint.load(path) or {})["i"] == 7
    damage(path)
    assert (checkpoint.load(path) or {})["i"] == 1  # the damaged file did not push it out
    damage(checkpoint.previous(path))
    assert checkpoint.load(path) is None and "starting over" in caplog.text


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(cli, tmp_path, whole):
    assert cli(*RUN, tiny=False).code == 0
    for name in ("result.json", "reconstruction.safetensors"):
        (tmp_path / "run" / name).unlink()
    damage_by_cutting(tmp_path / "run/checkpoint")
    outcome = cli(*RUN, tiny=False)
    assert outcome.code == 0
    assert (
        "checkpoint is damaged: using the one before it" in outcome.out
        and "going on from iteration" in outcome.out
    )
    assert all(map(torch.equal, spoken(tmp_path / "run"), whole))
