"""float32 means float32, unless asked otherwise and then with a look at the cost."""

import logging

import pytest
import torch

from simudy import SGD, Evidence, Recipe, SimudyError, StatelessModel, simulate
from simudy.app.tasks.precision import multiply_exactly, set_precision
from simudy.attack.methods.problem import Problem
from simudy.attack.methods.simudy import Simudy
from simudy.victim.models import MLP


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


def test_convolutions_and_products_are_exact_until_asked():
    multiply_exactly()
    set_precision("ieee", Rounded(1.0))  # not even looked at
    backends = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    assert [b.fp32_precision for b in backends] == ["ieee"] * 3


def test_what_it_costs_is_said(caplog):
    caplog.set_level(logging.INFO)
    set_precision("tf32", Rounded(1e-3))
    assert (
        torch.backends.cudnn.conv.fp32_precision
        == torch.backends.cuda.matmul.fp32_precision
        == "tf32"
    )
    assert "precision=tf32: the first outer gradient is 1.0e-03 of its norm off" in caplog.text


def test_too_coarse_is_refused():
    with pytest.raises(SimudyError, match=r"off by 2\.0e-01: set precision=ieee"):
        set_precision("tf32", Rounded(0.2))
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"


def test_a_device_without_the_units_is_not_changed():
    torch.manual_seed(0)
    model, recipe = StatelessModel(MLP((1, 8, 8), 2, width=6)), Recipe(SGD(lr=0.1), epochs=2)
    batches = recipe.collate(torch.randn(4, 1, 8, 8), torch.arange(4) % 2)
    with torch.no_grad():
        final = simulate(model.loss, model.params, batches, recipe.rules(4))
    evidence = Evidence(model, model.params, final, recipe, (1, 8, 8), 2, 4)
    problem = Simudy(images="pixels").problem(evidence, seed=0)
    set_precision("tf32", problem)  # raises if the gradient moved
    assert problem.variables()["latent"].grad is None
