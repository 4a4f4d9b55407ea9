"""The first steps for the whole: against the run itself, a loop in plain torch, and differences."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import small_victim
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


def test_value_and_slope_are_those_of_a_plain_loop():
    """Corrected at one place, asked at another; SGD with momentum and decay, by hand."""
    evidence, _ = small_victim()
    problem = posed(evidence, horizon=0.4)
    problem.objective(0.0)
    reached = [_loop(problem, problem.variables()["latent"], steps=k) for k in (4, 8)]
    times = torch.dot(*reached) / torch.dot(reached[0], reached[0])
    rest = (reached[1] - times * reached[0]).detach()
    latent = moved(problem)
    found, _ = problem.objective(0.0)
    here = times.detach() * _loop(problem, latent, steps=4) + rest
    real = torch.cat([(evidence.final[k] - evidence.initial[k]).flatten() for k in evidence.final])
    expected = 1 - F.cosine_similarity(here, real, dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    slopes = [torch.autograd.grad(value, latent)[0] for value in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-13)


def _loop(problem: CorrectedProblem, latent: Tensor, *, steps: int) -> Tensor:
    """How far the first steps go, flattened."""
    evidence, labels = problem.evidence, problem.labels()
    theta = {k: p.clone().requires_grad_() for k, p in evidence.initial.items()}
    moment = dict.fromkeys(theta, torch.zeros(()))
    for t in range(steps):
        batch = slice(0, 3) if t % 2 == 0 else slice(3, 6)
        hidden = torch.tanh(latent[batch].flatten(1) @ theta["1.weight"].T + theta["1.bias"])
        loss = F.cross_entropy(hidden @ theta["3.weight"].T + theta["3.bias"], labels[batch])
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        for name, grad in zip(list(theta), grads, strict=True):
            moment[name] = 0.9 * moment[name] + grad + 0.01 * theta[name]
            theta[name] = theta[name] - 0.3 * moment[name]
    return torch.cat([(theta[k] - evidence.initial[k]).flatten() for k in theta])


@pytest.mark.parametrize("rule", RULES)
def test_slopes_are_finite_differences_while_a_correction_stands(rule):
    problem = posed(small_victim(RULES[rule])[0], labels="learned")
    problem.objective(0.0)
    latent = moved(problem, 0.1)
    found = torch.autograd.grad(problem.objective(0.0)[0], latent)[0]
    direction, values = torch.randn_like(latent), []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            latent.add_(step * direction)
            values.append(float(problem.objective(0.0)[0]))
            latent.sub_(step * direction)
    difference = (values[0] - values[1]) / 2e-6
    assert float((found * direction).sum()) == pytest.approx(difference, rel=1e-6)


def test_it_finds_the_images_where_the_first_steps_alone_do_not():
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


def test_first_steps_that_do_not_move_the_weights_are_refused():
    evidence, _ = small_victim(SGD(lr=0.3))
    late = dataclasses.replace(evidence.recipe, schedule=lambda step: float(step >= 4))
    with pytest.raises(SimudyError, match=r"Corrected\(horizon=0\.4\): the weights do not move"):
        posed(evidence, recipe=late).objective(0.0)


def test_what_does_not_fit_is_refused_in_a_line():
    evidence, _ = small_victim()
    with pytest.raises(SimudyError, match=r"Corrected\(\) holds .* use Reverse\(\)"):
        posed(evidence, gradient=Factored(layers="all"))
    inside = (Checkpoint(3, tree.scale(1.1, evidence.initial)),)
    with pytest.raises(SimudyError, match=r"Corrected\(\) .* use Simudy\(\)"):
        posed(dataclasses.replace(evidence, checkpoints=inside))
