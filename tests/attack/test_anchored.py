"""The anchored path: against the run itself, against loops in plain torch, and over processes."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import difference, small_victim
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from simudy import (
    SGD,
    Adam,
    Evidence,
    Factored,
    Outer,
    Recompute,
    SimudyError,
    Truncated,
    simulate,
)
from simudy.attack.checkpoints.segments import Checkpoint
from simudy.attack.methods.anchored import Anchored, AnchoredProblem
from simudy.attack.search import Search
from simudy.dynamics import tree
from simudy.dynamics.optim import SAM, Clipped

CLASSES, N, STEPS = 3, 6, 8

pytestmark = pytest.mark.usefixtures("float64")


def posed(evidence: Evidence, **settings: Any) -> AnchoredProblem:
    problem = Anchored(images="pixels", **settings).problem(evidence, seed=0)
    assert isinstance(problem, AnchoredProblem)
    return problem


def slope(problem: AnchoredProblem, progress: float = 0.0) -> Tensor:
    objective, _ = problem.objective(progress)
    return torch.autograd.grad(objective, problem.variables()["latent"])[0]


def test_at_the_true_images_the_path_is_the_runs():
    evidence, images = small_victim()
    problem = posed(evidence, noise=0.0)
    problem.restore(images, torch.arange(N) % CLASSES, {})
    (moved,), (real,) = problem.displacements(0.0), problem.real
    for name, value in moved.items():
        torch.testing.assert_close(value, real[name], rtol=1e-9, atol=1e-12)
    assert problem.objective(0.0)[1].item() < 1e-12


def loop(problem: AnchoredProblem, points: list[tree.Params], weights: list[float]) -> Tensor:
    """The distance with each step's gradient taken at its point, by hand, for SGD with momentum and
    decay; ``weights`` on the derivative of each.
    """
    evidence, batches = problem.evidence, problem.dummy.batches(problem.recipe)
    theta, moment = dict(evidence.initial), dict.fromkeys(evidence.initial, torch.zeros(()))
    for point, (images, labels), weight in zip(points, batches, weights, strict=True):
        leaves = {k: p.detach().requires_grad_() for k, p in point.items()}
        hidden = torch.tanh(images.flatten(1) @ leaves["1.weight"].T + leaves["1.bias"])
        loss = F.cross_entropy(hidden @ leaves["3.weight"].T + leaves["3.bias"], labels)
        grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        for name, grad in zip(leaves, grads, strict=True):
            grad = grad.detach() + weight * (grad - grad.detach())
            moment[name] = 0.9 * moment[name] + grad + 0.01 * theta[name]
            theta[name] = theta[name] - 0.3 * moment[name]
    a, b = (
        torch.cat([(p[k] - evidence.initial[k]).flatten() for k in theta])
        for p in (theta, evidence.final)
    )
    return 1 - F.cosine_similarity(a, b, dim=0)


@pytest.mark.parametrize("adjoint", [None, Recompute()])
@pytest.mark.parametrize("nodes", [None, 2])
def test_value_and_slope_are_those_of_a_plain_loop(nodes, adjoint):
    problem = posed(small_victim()[0], nodes=nodes, **({"adjoint": adjoint} if adjoint else {}))
    found, value = slope(problem), problem.objective(0.0)[1].item()
    path = problem._made
    assert path is not None and len(path.taken) == (nodes or 0)
    weights = [STEPS / nodes * (t in path.taken) if nodes else 1.0 for t in range(STEPS)]
    expected = loop(problem, list(path.points), weights)
    assert value == pytest.approx(expected.item(), rel=1e-10)
    latent = problem.variables()["latent"]
    torch.testing.assert_close(found, torch.autograd.grad(expected, latent)[0], rtol=1e-8, atol=0)


def test_the_points_are_a_bent_simulation():
    problem = posed(small_victim()[0])
    problem.objective(0.0)
    path, start, end = problem._made, problem.evidence.initial, problem.evidence.final
    assert path is not None
    recipe, batches = problem.recipe, problem.dummy.batches(problem.recipe)
    shorter = [start]
    for t in range(1, STEPS + 1):
        rules = recipe.rules(N)[:t]
        reached = simulate(problem.evidence.model.loss, start, batches[:t], rules)
        shorter.append(tree.detach(reached))
    missed = tree.sub(end, shorter[-1])
    for t, point in enumerate(path.points):
        for name, value in point.items():
            expected = shorter[t][name] + t / STEPS * missed[name]
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("nodes", [None, 3])
@pytest.mark.parametrize("rule", [SGD(lr=0.3), Adam(lr=0.02)])
def test_slopes_are_finite_differences_on_a_path_that_stands(rule, nodes):
    problem = posed(small_victim(rule)[0], labels="learned", nodes=nodes)
    found, latent = slope(problem), problem.variables()["latent"]
    direction = torch.randn_like(latent)
    expected = difference(problem, direction, progress=0.0, step=1e-5)
    assert float((found * direction).sum()) == pytest.approx(expected, rel=1e-6)


def test_over_many_paths_a_few_nodes_have_the_slope_of_all():
    """Each stretch's step is drawn evenly, so that the mean over draws is the whole sum."""
    evidence, _ = small_victim(SGD(lr=0.3))
    whole = slope(posed(evidence))
    few = posed(evidence, nodes=2, paths=400, anchored_until=1.0)
    drawn = torch.stack([slope(few, i / 400) for i in range(400)]).mean(0)
    assert F.cosine_similarity(drawn.flatten(), whole.flatten(), dim=0) > 0.995
    assert float(drawn.norm() / whole.norm()) == pytest.approx(1, abs=0.05)


def test_it_finds_the_images():
    evidence, images = small_victim(SGD(lr=0.1), batch_size=None)
    method = Anchored(images="pixels", noise=0.1)
    search = Search(method.problem(evidence, seed=0), Outer(lr=0.1, iterations=300))
    found = search.run()
    matched = torch.cdist(found.images.flatten(1), images.flatten(1)).min(1).values
    assert found.distance < 0.01 and float(matched.median()) < 0.35 * math.sqrt(16)


@pytest.mark.parametrize(
    ("rule", "settings", "words"),
    [
        (None, {"gradient": Factored(layers="all")}, "use Reverse()"),
        (None, {"adjoint": Truncated(last=2)}, "Recompute()"),
        (SAM(SGD(lr=0.1)), {}, "Simudy()"),
        (None, {"shared": True, "nodes": 2}, "nodes=None"),
        (Adam(lr=0.1), {"shared": True}, "one process"),
        (Clipped(SGD(lr=0.1), max_norm=5.0), {"shared": True}, "one process"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(rule, settings, words):
    with pytest.raises(SimudyError, match="Anchored") as refused:
        posed(small_victim(rule)[0], **settings)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_known_weights_inside_are_not_for_it():
    evidence, _ = small_victim()
    inside = (Checkpoint(3, tree.scale(1.1, evidence.initial)),)
    with pytest.raises(SimudyError, match=r"use Simudy\(\)"):
        posed(dataclasses.replace(evidence, checkpoints=inside))


RULES = {"sgd": None, "plain": SGD(lr=0.3), "nesterov": SGD(lr=0.1, momentum=0.5, nesterov=True)}


def found(case: str, *, shared: bool) -> dict[str, Any]:
    """Value and slopes, by the images, their labels and the step size."""
    evidence, _ = small_victim(RULES[case])
    problem = posed(evidence, shared=shared, labels="learned", learn=("lr",), tv=0.01)
    objective, distance = problem.objective(0.0)
    variables = problem.variables()
    slopes = torch.autograd.grad(objective, list(variables.values()))
    return {"distance": distance.detach(), **dict(zip(variables, slopes, strict=True))}


def process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    torch.save({case: found(case, shared=True) for case in RULES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_processes_that_share_the_steps_find_what_one_finds(tmp_path: Path, world):
    spawn(process, (world, str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for case in RULES:
        expected = found(case, shared=False)
        close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
        for of_rank in ranks:
            for name, value in expected.items():
                close(of_rank[case][name], value)
                assert torch.equal(of_rank[case][name], ranks[0][case][name])


def test_a_share_wants_processes():
    with pytest.raises(SimudyError, match="torchrun"):
        posed(small_victim()[0], shared=True).objective(0.0)
