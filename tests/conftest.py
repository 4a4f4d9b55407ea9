"""What the tests share: a victim trained on given images, float64, and the command line."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simudy import SGD, Evidence, Recipe, StatelessModel, simulate
from simudy.attack.methods.problem import Problem
from simudy.dynamics.optim import Rule

torch.set_num_threads(1)

TINY = ("data.n=4", "data.size=8", "model.width=16", "recipe.epochs=3", "outer.iterations=4")
CIFAR = Path(__file__).parents[2] / "shared" / "data"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def train_victim(
    module: nn.Module, recipe: Recipe, images: Tensor, labels: Tensor, *, classes: int
) -> Evidence:
    """What a run of ``recipe`` on ``images (n, c, h, w)`` leaves behind."""
    model, n = StatelessModel(module), len(images)
    with torch.no_grad():
        final = simulate(model.loss, model.params, recipe.collate(images, labels), recipe.rules(n))
    return Evidence(model, model.params, final, recipe, tuple(images.shape[1:]), classes, n)


def small_victim(
    rule: Rule | None = None, batch_size: int | None = 3, epochs: int = 4
) -> tuple[Evidence, Tensor]:
    """A tanh network after a few steps on six images of 1×4×4, three classes; and the images."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 3))
    images, labels = torch.randn(6, 1, 4, 4), torch.arange(6) % 3
    rule = rule or SGD(lr=0.3, momentum=0.9, weight_decay=0.01)
    return train_victim(module, Recipe(rule, epochs, batch_size), images, labels, classes=3), images


def difference(problem: Problem, direction: Tensor, *, progress: float, step: float) -> float:
    """The slope of the objective along ``direction`` of the dummies, by a central difference."""
    latent, values = problem.variables()["latent"], []
    for by in (step, -step):
        with torch.no_grad():
            latent.add_(by * direction)
            values.append(float(problem.objective(progress)[0]))
            latent.sub_(by * direction)
    return (values[0] - values[1]) / (2 * step)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the benchmarks, whose scripts are importable."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' deprecations
        yield BENCHMARKS
    for script in BENCHMARKS.glob("*.py"):
        sys.modules.pop(script.stem, None)


@pytest.fixture
def float64() -> Iterator[None]:
    """Tensors that a test makes are float64: ``pytestmark =
    pytest.mark.usefixtures("float64")``.
    """
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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
    # The command looks for modules in the working directory, which later tests' processes should
    # not: one that holds a folder of the name simudy would hide the package from them.
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*argv: str, tiny: bool = True) -> Outcome:
        capsys.readouterr()
        code = run_cli([*(TINY if tiny else ()), *argv])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def with_public_images(tmp_path) -> tuple[str, ...]:
    """Settings of data that has 16 images to pretrain on beside the victim's, and of a cache."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    data = ("data=npz", "data.path=d.npz", "data.n=4", "data.pretrain=16")
    return (*data, "model.width=16", "recipe.epochs=3", "cache=cache")


def result(folder: Path) -> dict:
    """A run's ``result.json``."""
    return json.loads((folder / "result.json").read_text())


@pytest.fixture
def attempt(cli, tmp_path, monkeypatch) -> Callable[..., None]:
    """``attempt(case, without=keys of TINY)``: a hostile input (``hostile/verdict.py``) in this
    process, without the pictures, which take the longest: laid out, run and judged.
    """
    from verdict import TINY, judge, time_limit

    from simudy.app.tasks import finish

    monkeypatch.setattr(finish, "_draw", lambda *args: args[-1].gallery.write_bytes(b""))
    monkeypatch.setenv("HOME", str(tmp_path))

    def call(case, without: Sequence[str] = ()) -> None:
        case.prepare(tmp_path)
        tiny = [word for word in TINY if word.split("=")[0] not in without]
        with time_limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tests' errors, but no person's
            outcome = cli(*tiny, *case.argv, tiny=False)
        os.chdir(tmp_path)
        judge(outcome.code, outcome.out, outcome.err, tmp_path, refused=case.refused)

    return call
