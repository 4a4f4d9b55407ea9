"""A stretch for the whole: against the run itself, a loop in plain torch, and differences."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import difference, small_victim
from torch import Tensor

from simudy import SGD, Adam, Evidence, Factored, Outer, SimudyError
from simudy.attack.checkpoints.segments import Checkpoint
from simudy.attack.methods.corrected import Corrected, CorrectedProblem
from simudy.attack.methods.simudy import Simudy
from simudy.attack.search import Search
from simudy.dynamics import tree
from simudy.dynamics.optim import SAM, Lookahead

pytestmark = pytest.mark.usefixtures("float64")

RULES = {
    "sgd": SGD(lr=0.3),
    "momentum": SGD(lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": Adam(lr=0.02),
    "sam": SAM(SGD(lr=0.3)),
    "lookahead": Lookahead(SGD(lr=0.3), every=3),
}


def posed(evidence: Evidence, **settings: Any) -> CorrectedProblem:
    problem = Corrected(images="pixels", **settings).problem(evidence, seed=0)
    assert isinstance(problem, CorrectedProblem)
    return problem


def moved(problem: Any, by: float = 0.3) -> Tensor:
    """The problem's dummies, after they were moved."""
    latent = problem.variables()["latent"]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        latent.add_(by * torch.randn(latent.shape, generator=generator))
    return latent


@pytest.mark.parametrize("horizon", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("rule", RULES)
def test_where_it_was_just_corrected_it_is_the_whole_run(rule, horizon):
    evidence, _ = small_victim(RULES[rule])
    plain: Any = Simudy(images="pixels").problem(evidence, seed=0)
    found = posed(evidence, horizon=horizon).displacements(0.0)[0]
    for name, value in plain.displacements()[0].items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-13)


def test_the_true_images_are_a_solution():
    evidence, images = small_victim()
    problem = posed(evidence, noise=0.0)
    problem.restore(images, torch.arange(6) % 3, {})
    assert problem.objective(0.0)[1].item() < 1e-12


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_value_and_slope_are_those_of_a_plain_loop(turn):
    """Corrected at one place, asked at another; SGD with momentum and decay, by hand. Stretches of
    three steps of eight take turns.
    """
    evidence, _ = small_victim()
    problem = posed(evidence, horizon=0.3, corrections=10)
    problem.objective(turn / 10)
    first, latent = (0, 2, 0)[turn], problem.variables()["latent"]
    point, moment = _loop(problem, latent, range(first))
    end, after = _loop(problem, latent, range(first, first + 3), point, moment)
    whole, _ = _loop(problem, latent, range(first + 3, 8), end, after)
    delta, whole = _flat(end) - _flat(point), _flat(whole) - _flat(evidence.initial)
    times = (torch.dot(delta, whole) / torch.dot(delta, delta)).detach()
    point, moment = tree.detach(point), tree.detach(moment)
    latent = moved(problem)
    end, _ = _loop(problem, latent, range(first, first + 3), point, moment)
    here = times * (_flat(end) - _flat(point)) + (whole - times * delta).detach()
    real = _flat(evidence.final) - _flat(evidence.initial)
    expected = 1 - F.cosine_similarity(here, real, dim=0)
    found, _ = problem.objective(turn / 10)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    slopes = [torch.autograd.grad(value, latent)[0] for value in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-13)


def _loop(
    problem: CorrectedProblem,
    latent: Tensor,
    steps: range,
    theta: tree.Params | None = None,
    moment: tree.Params | None = None,
) -> tuple[tree.Params, tree.Params]:
    """Weights and momentum after these steps."""
    labels = problem.labels()
    theta = dict(theta or problem.evidence.initial)
    moment = dict(moment or tree.scale(0.0, theta))
    for t in steps:
        batch = slice(0, 3) if t % 2 == 0 else slice(3, 6)
        leaves = {k: v if v.requires_grad else v.clone().requires_grad_() for k, v in theta.items()}
        hidden = torch.tanh(latent[batch].flatten(1) @ leaves["1.weight"].T + leaves["1.bias"])
        loss = F.cross_entropy(hidden @ leaves["3.weight"].T + leaves["3.bias"], labels[batch])
        grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        for name, grad in zip(list(leaves), grads, strict=True):
            moment[name] = 0.9 * moment[name] + grad + 0.01 * leaves[name]
            theta[name] = leaves[name] - 0.3 * moment[name]
    return theta, moment


def _flat(params: tree.Params) -> Tensor:
    return torch.cat([value.flatten() for value in params.values()])


@pytest.mark.parametrize(
    ("horizon", "firsts"), [(0.4, [0, 0]), (0.3, [0, 2, 0]), (0.2, [0, 2, 4, 0])]
)
def test_stretches_take_turns_but_for_the_end_of_the_run(horizon, firsts):
    problem = posed(small_victim()[0], horizon=horizon, corrections=10)
    stretches = []
    for turn in range(len(firsts)):
        problem.objective(turn / 10)
        stretches.append(problem._made.stretch)
    assert [stretch.start for stretch in stretches] == firsts
    assert max(stretch.stop for stretch in stretches) < 8


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("rule", RULES)
def test_slopes_are_finite_differences_while_a_correction_stands(rule, turn):
    problem = posed(small_victim(RULES[rule])[0], labels="learned", horizon=0.3, corrections=10)
    problem.objective(turn / 10)
    latent = moved(problem, 0.1)
    found = torch.autograd.grad(problem.objective(turn / 10)[0], latent)[0]
    direction = torch.randn_like(latent)
    expected = difference(problem, direction, progress=turn / 10, step=1e-6)
    assert float((found * direction).sum()) == pytest.approx(expected, rel=1e-6)


def test_it_finds_the_images_where_a_shorter_run_does_not():
    evidence, images = small_victim(SGD(lr=0.1), batch_size=None, epochs=8)
    short = dataclasses.replace(evidence.recipe, epochs=4)
    methods = (Corrected(horizon=0.5), Simudy(recipe=short))
    off = []
    for method in methods:
        method = dataclasses.replace(method, images="pixels", noise=0.1)
        search = Search(method.problem(evidence, seed=0), Outer(lr=0.1, iterations=300))
        found = search.run().images
        off.append(float(torch.cdist(found.flatten(1), images.flatten(1)).min(1).values.median()))
    assert off[0] < 0.3 and off[1] > 0.6


def test_a_stretch_that_does_not_move_the_weights_is_refused():
    evidence, _ = small_victim(SGD(lr=0.3))
    late = dataclasses.replace(evidence.recipe, schedule=lambda step: float(step >= 4))
    with pytest.raises(SimudyError, match=r"Corrected\(horizon=0\.4\): .* in steps 1 to 4 of"):
        posed(evidence, recipe=late).objective(0.0)


def test_what_does_not_fit_is_refused_in_a_line():
    evidence, _ = small_victim()
    with pytest.raises(SimudyError, match=r"Corrected\(\) holds .* use Reverse\(\)"):
        posed(evidence, gradient=Factored(layers="all"))
    inside = (Checkpoint(3, tree.scale(1.1, evidence.initial)),)
    with pytest.raises(SimudyError, match=r"Corrected\(\) .* use Simudy\(\)"):
        posed(dataclasses.replace(evidence, checkpoints=inside))
