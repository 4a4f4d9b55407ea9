"""float32 means float32, unless asked otherwise and then with a look at the cost."""

import logging
from typing import Any

import pytest
import torch
from conftest import train_victim
from torch import nn

from simudy import SGD, Evidence, Recipe, SimudyError
from simudy.app.tasks.precision import at_precision, multiply_exactly
from simudy.attack.methods.problem import Problem
from simudy.attack.methods.simudy import Simudy
from simudy.victim.models import MLP, ResNet


@pytest.fixture(autouse=True)
def as_before():
    before = torch.backends.fp32_precision
    yield
    torch.backends.fp32_precision = before


class Rounded(Problem):
    """Stands in for a GPU: under tf32 its objective is another one, by ``error``."""

    def __init__(self, error: float) -> None:
        self.error, self.leaf = error, torch.ones(4, requires_grad=True)

    def variables(self):
        return {"latent": self.leaf}

    def objective(self, progress):
        factor = 1 + self.error * (torch.backends.cuda.matmul.fp32_precision == "tf32")
        return (factor * self.leaf.square()).sum(), self.leaf.sum()


def stand_in(name: str, error: float) -> Problem:
    problem: Any = Rounded(error)
    return at_precision(name, problem, None, lambda evidence: problem)  # type: ignore[arg-type]


def test_convolutions_and_products_are_exact_until_asked():
    multiply_exactly()
    stand_in("ieee", 1.0)  # not even looked at
    backends = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    assert [b.fp32_precision for b in backends] == ["ieee"] * 3


def test_what_it_costs_is_said(caplog):
    caplog.set_level(logging.INFO)
    stand_in("tf32", 1e-3)
    assert (
        torch.backends.cudnn.conv.fp32_precision
        == torch.backends.cuda.matmul.fp32_precision
        == "tf32"
    )
    assert "precision=tf32: the first outer gradient is 1.0e-03 of its norm off" in caplog.text


def test_too_coarse_is_refused():
    with pytest.raises(SimudyError, match=r"off by 2\.0e-01: set precision=ieee"):
        stand_in("tf32", 0.2)
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"


def small(module: nn.Module) -> Evidence:
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4) % 2
    return train_victim(module.eval(), Recipe(SGD(lr=0.1), epochs=2), images, labels, classes=2)


def posed(evidence: Evidence) -> Problem:
    return Simudy(images="pixels").problem(evidence, seed=0)


def test_a_device_without_the_units_is_not_changed():
    evidence = small(MLP((3, 8, 8), 2, width=6))
    problem = posed(evidence)
    same = at_precision("tf32", problem, evidence, posed)  # raises if the gradient moved
    assert same is problem and problem.variables()["latent"].grad is None


def test_convolutions_are_rounded_to_bf16_and_the_evidence_is_not(caplog):
    caplog.set_level(logging.INFO)
    evidence = small(ResNet((3, 8, 8), 2, width=8))
    problem = posed(evidence)
    rounded = at_precision("bf16", problem, evidence, posed)
    assert "precision=bf16: the first outer gradient is" in caplog.text
    (exact, _), (off, _), (again, _) = (p.objective(0.0) for p in (problem, rounded, problem))
    assert 0 < abs(float(off.detach() - exact.detach())) < 0.01 * float(exact.detach())
    assert torch.equal(again, exact)


def test_a_whole_attack_runs_in_bf16(cli):
    run = cli("model=resnet", "dummy.images=pixels", "precision=bf16")
    assert not run.code and "precision=bf16: the first outer gradient is" in run.out + run.err
