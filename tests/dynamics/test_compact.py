"""A real displacement held as factors gives what the dense one gives."""

import pytest
import torch
from conftest import train_victim
from torch import nn

from simudy import SGD, Evidence, Factored, Recipe, Reverse
from simudy.attack.methods.simudy import Simudy
from simudy.dynamics.gradient.compact import compact
from simudy.dynamics.gradient.factored_weight import FactoredWeight

N, STEPS = 3, 4


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 60), nn.Tanh(), nn.Linear(60, 80), nn.Tanh(), nn.Linear(80, 2)
    )
    recipe = Recipe(SGD(lr=0.05, momentum=0.5), epochs=STEPS)
    images, labels = torch.randn(N, 1, 8, 8), torch.arange(N) % 2
    return train_victim(net, recipe, images, labels, classes=2)


def test_a_displacement_of_low_rank_is_held_by_its_factors(evidence):
    moved, weight = evidence.displacement["3.weight"], evidence.initial["3.weight"]
    held = compact(moved, weight, rank=N * STEPS, steps=STEPS)
    assert isinstance(held, FactoredWeight)
    (atom,) = held.atoms
    assert len(atom.left) <= N * STEPS
    assert float((held.dense() - moved).norm()) <= 2e-7 * float(weight.norm()) * STEPS**0.5
    assert float((held.dense() - moved).norm()) <= 1e-4 * float(moved.norm())


def test_any_other_is_left_as_it_is(evidence):
    torch.manual_seed(1)
    weight = evidence.initial["3.weight"]
    noise = 1e-2 * torch.randn_like(weight)
    assert compact(noise, weight, rank=N * STEPS, steps=STEPS) is noise
    moved = evidence.displacement["3.weight"]
    assert compact(moved, weight, rank=1, steps=STEPS) is moved  # a guess of one step and one image


def test_nobody_else_s_random_numbers_are_drawn(evidence):
    before = torch.get_rng_state()
    compact(evidence.displacement["3.weight"], evidence.initial["3.weight"], rank=12, steps=STEPS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "layerwise"])
def test_the_objective_and_its_gradient_stay(evidence, distance):
    found = []
    for gradient in (Factored(layers="all"), Reverse()):
        problem = Simudy(images="pixels", distance=distance, gradient=gradient).problem(
            evidence, seed=0
        )
        objective, _ = problem.objective(0.0)
        found.append(
            (
                objective.detach(),
                *torch.autograd.grad(objective, list(problem.variables().values())),
            )
        )
        assert isinstance(problem.real[0]["3.weight"], FactoredWeight) == isinstance(
            gradient, Factored
        )
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))
