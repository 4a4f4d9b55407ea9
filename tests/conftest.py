"""What the tests of the command line share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

torch.set_num_threads(1)

TINY = ("data.n=4", "data.size=8", "model.width=16", "recipe.epochs=3", "outer.iterations=4")
CIFAR = Path(__file__).parents[2] / "shared" / "data"


class Outcome(NamedTuple):
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what was wrong."""
        assert self.code == 2, self
        assert "Traceback" not in self.out + self.err
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("simudy: error: "), self.err
        return lines[0].removeprefix("simudy: error: ")


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """What a test draws without a generator of its own does not depend on which tests ran before
    it.
    """
    torch.manual_seed(0)


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch) -> Callable[..., Outcome]:
    """``cli("key=value", …)``: a tiny run in this process, in an empty working directory."""
    from simudy.app.cli import run_cli

    monkeypatch.chdir(tmp_path)

    def call(*argv: str, tiny: bool = True) -> Outcome:
        capsys.readouterr()
        code = run_cli([*(TINY if tiny else ()), *argv])
        return Outcome(code, *capsys.readouterr())

    return call


def result(folder: Path) -> dict:
    """A run's ``result.json``."""
    return json.loads((folder / "result.json").read_text())
