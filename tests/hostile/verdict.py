"""What every hostile input must come to, and the runs that are made hostile."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

LIMIT = 20  # seconds
SAMPLE = 100  # inputs that `make test` tries, the same ones every time
TINY = (
    *("data.n=4", "data.size=8", "model.width=8", "recipe.epochs=2", "outer.iterations=2"),
    *("outer.refine=1", "intervals.snapshots=2", "hydra.run.dir=run"),
)
CANARY = "canary"  # a file that no input may bring about


class Case(NamedTuple):
    """One hostile input.

    Attributes:
        name: of the test.
        argv: the command line.
        prepare: lays out the working directory.
        refused: whether it must be refused; otherwise it may also be taken for what it says.
    """

    name: str
    argv: Sequence[str]
    prepare: Callable[[Path], object] = lambda folder: None
    refused: bool = False


class Hang(BaseException):
    """It took too long; no ``except Exception`` catches this."""


@contextmanager
def time_limit(seconds: int = LIMIT):
    """Raise ``Hang`` in here once the time is up."""

    def late(number, frame):
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judge(code: int, out: str, err: str, folder: Path, *, refused: bool) -> None:
    """The verdict.

    Raises:
        AssertionError: a traceback, another exit code, a line that nobody foresaw, code that ran,
            or a result out of nonsense.
    """
    assert code in ((2,) if refused else (0, 2, 130)), (code, out, err)
    assert "Traceback" not in out + err, err
    assert "not foreseen" not in out + err, err
    assert not (folder / CANARY).exists(), "code of the input ran"
    if code == 2:
        lines = [line for line in err.splitlines() if line.startswith("simudy")]
        assert len(lines) == 1 and len(lines[0]) < 1000, err
    if code == 0 and (folder / "run/result.json").exists():
        require_meaningful(json.loads((folder / "run/result.json").read_text()))


def require_meaningful(result: dict[str, Any]) -> None:
    """A run that was not refused came to numbers, or says that it diverged."""
    numbers = [result.get(k) for k in ("objective", "distance", "ssim_paper", "mse", "m_lin")]
    finite = all(n is None or math.isfinite(n) for n in numbers)
    assert finite or result["status"] == "diverged", result


def sampled(cases: Sequence[Case], *, share: int, seed: int = 0) -> list[Any]:
    """The cases as pytest's parameters: ``share`` of them in ``make test``, all of them slow."""
    chosen = set(random.Random(seed).sample(range(len(cases)), min(share, len(cases))))
    return [
        pytest.param(case, id=case.name, marks=() if i in chosen else pytest.mark.slow)
        for i, case in enumerate(cases)
    ]


def environment(**more: str) -> dict[str, str]:
    """Of a process of its own."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}
