"""Signals at any moment: the run stops after its step, says nothing ugly, and goes on to the same
end.
"""

from __future__ import annotations

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

LONG = ("outer.iterations=40", "intervals.checkpoint=0", "recipe.epochs=20")
COMMAND = [sys.executable, "-c", MAIN, *TINY, *LONG]


def begun(folder, *argv):
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*COMMAND, *argv], cwd=folder, env=environment(), stdout=pipe, stderr=pipe, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [0.1 * i for i in range(1, 30)])
def test_a_signal_at_any_moment(tmp_path, number, after):
    """From 0.1 s on, when Python itself has started; where it has not, on a machine under load, the
    system ends it in silence.
    """
    process = begun(tmp_path)
    time.sleep(after)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    unborn = process.returncode == -number and not out + err
    assert unborn or process.returncode in (0, 130), (out, err)
    assert "Traceback" not in out + err and "Exception" not in out + err, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["victim", "pretrain", "linearity", "search"])
def test_a_signal_in_every_loop(cli, tmp_path, monkeypatch, number, stage):
    """The flag is read between two steps, wherever the signal arrives."""
    from simudy.attack.search import Search
    from simudy.dynamics.optim.sgd import SGD

    steps = 0

    def interrupting(step):
        def taken(*args, **kwargs):
            nonlocal steps
            steps += 1
            if steps == 3:
                signal.raise_signal(number)
            return step(*args, **kwargs)

        return taken

    argv = {"linearity": ["task=linearity"], "pretrain": ["victim=pretrained", *PRETRAIN]}
    options = [w for w in TINY if stage != "pretrain" or not w.startswith("data.size")]
    if stage == "search":
        monkeypatch.setattr(Search, "step", interrupting(Search.step))
    elif stage == "pretrain":
        monkeypatch.setattr(torch.optim.SGD, "step", interrupting(torch.optim.SGD.step))
        draw(tmp_path)
    else:
        monkeypatch.setattr(SGD, "update", interrupting(SGD.update))
    outcome = cli(*options, *LONG, *argv.get(stage, []), tiny=False)
    assert outcome.code == 130, outcome
    assert steps <= 4 and "Traceback" not in outcome.out + outcome.err


PRETRAIN = (
    "data=npz",
    "data.path=a.npz",
    "data.pretrain=4",
    "victim.pretrain.batch_size=2",
    "cache=c",
)


def draw(folder):
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8), dtype=np.uint8)
    np.savez(folder / "a.npz", images=pixels, labels=np.arange(16) % 2)


def test_a_second_signal_ends_at_once(tmp_path):
    script = (
        "import signal, time\n"
        "from simudy.app.signals import stopping_on_signals\n"
        "with stopping_on_signals():\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 130
    assert done.stderr.split("\n\n")[0] == "\nstopping after this step; once more stops at once"


def tensors(folder):
    return sorted(load_file(folder / "reconstruction.safetensors").items())


@pytest.mark.slow
def test_a_hundred_random_kills(tmp_path):
    """Runs killed outright at random moments, and launched again, end bit for bit where they
    would have.
    """
    began, whole = time.monotonic(), begun(tmp_path, "hydra.run.dir=whole")
    whole.communicate(timeout=120)
    assert whole.returncode == 0
    takes = time.monotonic() - began
    rng, kills, runs = random.Random(0), 0, 0
    while kills < 100:
        runs += 1
        folder = tmp_path / f"run{runs}"
        while not (folder / "result.json").exists():
            process = begun(tmp_path, f"hydra.run.dir={folder}")
            try:
                process.wait(timeout=rng.uniform(0.1, 1.3) * takes)
                assert process.returncode == 0, process.communicate()
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
            process.communicate()
        for (name, one), (_, other) in zip(
            tensors(folder), tensors(tmp_path / "whole"), strict=True
        ):
            assert torch.equal(one, other), (name, runs)
