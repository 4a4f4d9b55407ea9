"""Weights known from inside the run: each segment is simulated from where it is known to begin."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simudy import (
    SGD,
    Adam,
    Direct,
    Evidence,
    Factored,
    Mixed,
    Recipe,
    Recompute,
    Reverse,
    SimudyError,
    StatelessModel,
    simulate,
)
from simudy.attack.checkpoints.segments import Checkpoint, evenly
from simudy.attack.evidence import evidence_from_weights
from simudy.attack.first_layer.span import NoSpan, Span
from simudy.attack.methods.simudy import Simudy
from simudy.attack.methods.surrogate import Surrogate
from simudy.attack.search import Outer, Search
from simudy.dynamics.gradient import Traced
from simudy.victim.train import train

SHAPE, CLASSES, N = (1, 4, 4), 3, 4
pytestmark = pytest.mark.usefixtures("float64")
MODES = [
    (Reverse(), Direct()),
    (Reverse(), Recompute(every=2)),
    (Mixed(), Direct()),
    (Traced(), Direct()),
    (Factored(layers="all"), Direct()),
    (Factored(Mixed(), layers="all"), Recompute(every=1)),
]


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, CLASSES))


def truth():
    torch.manual_seed(1)
    return torch.randn(N, *SHAPE), torch.arange(N) % CLASSES


def known(recipe, keep=(2, 3)):
    model, final, kept = train(module(), *truth(), recipe, keep=keep)
    inside = tuple(map(Checkpoint, keep, kept))
    facts = {"shape": SHAPE, "classes": CLASSES, "n": N, "checkpoints": inside}
    return Evidence(model, model.params, final, recipe, **facts)


def momentum(epochs=5, **options):
    return Recipe(SGD(lr=0.1, momentum=0.9, weight_decay=0.01), epochs=epochs, **options)


def problem(evidence, *, images=None, **settings):
    settings = {"images": "pixels", "labels": truth()[1], **settings}
    made = Simudy(**settings).problem(evidence, seed=0)
    if images is not None:
        with torch.no_grad():
            made.dummy.latent.copy_(images)
    return made


def by_hand(evidence, images, labels, *, lr=0.1, momentum=0.9, decay=0.01):
    """The sum of 1 − cos over the segments, by a plain unrolled loop in torch."""
    names, net = list(evidence.initial), module()
    nodes = [(0, evidence.initial), *((c.step, c.params) for c in evidence.checkpoints)]
    nodes.append((evidence.recipe.epochs, evidence.final))
    buffers, total = [torch.zeros_like(p) for p in evidence.initial.values()], torch.zeros(())
    for (first, start), (last, end) in pairwise(nodes):
        params = [start[k].clone().requires_grad_() for k in names]
        for _ in range(first, last):
            logits = torch.func.functional_call(
                net, dict(zip(names, params, strict=True)), (images,)
            )
            grads = torch.autograd.grad(
                F.cross_entropy(logits, labels), params, create_graph=True, retain_graph=True
            )
            buffers = [
                momentum * b + g + decay * p for b, g, p in zip(buffers, grads, params, strict=True)
            ]
            params = [p - lr * b for p, b in zip(params, buffers, strict=True)]
        ours = torch.cat([(p - start[k]).flatten() for p, k in zip(params, names, strict=True)])
        real = torch.cat([(end[k] - start[k]).flatten() for k in names])
        total = total + 1 - F.cosine_similarity(ours, real, dim=0)
    return total


@pytest.mark.parametrize("rule", [SGD(lr=0.1), momentum().optimizer, Adam(lr=0.05)], ids=repr)
@pytest.mark.parametrize(("gradient", "adjoint"), MODES, ids=repr)
def test_the_true_images_land_on_every_node(rule, gradient, adjoint):
    if isinstance(gradient, Factored) and not rule.spans_gradients:
        pytest.skip("elementwise rules are not factored")
    evidence = known(Recipe(rule, epochs=5))
    at = problem(evidence, images=truth()[0], gradient=gradient, adjoint=adjoint)
    objective, distance = at.objective(0.0)
    assert float(objective.detach()) < 1e-10
    assert float(distance.detach()) < 1e-10


@pytest.mark.parametrize(("gradient", "adjoint"), MODES, ids=repr)
def test_objective_and_gradient_are_those_of_a_plain_loop(gradient, adjoint):
    evidence = known(momentum())
    images = (truth()[0] + 0.5 * torch.randn(N, *SHAPE)).requires_grad_()
    theirs = by_hand(evidence, images, truth()[1])
    (slope,) = torch.autograd.grad(theirs, images)
    at = problem(evidence, images=images, gradient=gradient, adjoint=adjoint)
    objective, distance = at.objective(0.0)
    objective.backward()
    torch.testing.assert_close(objective.detach(), theirs.detach())
    torch.testing.assert_close(distance.detach(), theirs.detach() / 3)
    torch.testing.assert_close(at.dummy.latent.grad, slope)


def test_the_gradient_is_that_of_finite_differences():
    evidence, h = known(momentum()), 1e-5
    at = problem(evidence, images=truth()[0] + 0.3)
    along = torch.randn(N, *SHAPE)
    objective, _ = at.objective(0.0)
    (slope,) = torch.autograd.grad(objective, at.dummy.latent)
    ends = []
    for sign in (1, -1):
        moved = problem(evidence, images=truth()[0] + 0.3 + sign * h * along)
        ends.append(float(moved.objective(0.0)[0].detach()))
    assert float((slope * along).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


def test_the_state_is_carried_over_the_nodes():
    evidence = known(momentum())
    fresh = [dataclasses.replace(c, resumed=c.params) for c in evidence.checkpoints]
    other = dataclasses.replace(evidence, checkpoints=tuple(fresh))
    objective, _ = problem(other, images=truth()[0]).objective(0.0)
    assert float(objective.detach()) > 1e-3  # a fresh momentum at each node is another run


def test_factors_chosen_by_segment_agree():
    """Segments of one step and of eleven may hold a weight in another form each."""
    evidence, found = known(momentum(epochs=12), keep=(1,)), []
    for gradient in (Factored(), Factored(layers="all"), Reverse()):
        at = problem(evidence, images=truth()[0] + 0.3, gradient=gradient)
        at.objective(0.0)[0].backward()
        found.append(at.dummy.latent.grad)
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[2])


def federated():
    """Two rounds of three steps: the server moves the weights in between, the client begins with a
    fresh momentum.
    """
    model, batch, recipe = StatelessModel(module()), truth(), momentum(epochs=3)
    rounds, start = [], model.params
    for _ in range(2):
        end = simulate(model.loss, start, [batch] * 3, recipe.rules(N))
        rounds.append((start, end))
        start = {k: v + 0.05 * torch.randn_like(v) for k, v in end.items()}
    (first, reached), (resumed, final) = rounds
    inside = (Checkpoint(3, reached, resumed),)
    facts = {"shape": SHAPE, "classes": CLASSES, "n": N, "checkpoints": inside}
    return Evidence(model, first, final, momentum(epochs=6), **facts)


def test_rounds_of_a_federation():
    evidence = federated()
    objective, _ = problem(evidence, images=truth()[0]).objective(0.0)
    assert float(objective.detach()) < 1e-10
    with pytest.raises(NoSpan, match="others moved"):
        Span.of(evidence)
    assert Simudy().problem(evidence, seed=0).images().shape == (N, *SHAPE)  # frequencies then


def test_updates_of_clients_are_read(tmp_path):
    evidence = federated()
    resumed = evidence.checkpoints[0].resumed
    assert resumed is not None
    read = evidence_from_weights(
        module(),
        evidence.initial,
        evidence.final,
        recipe=evidence.recipe,
        n=N,
        checkpoints={3: evidence.checkpoints[0].params},
        resumed={3: resumed},
        shape=SHAPE,
        classes=CLASSES,
    )
    read.save(tmp_path)
    again = Evidence.load(tmp_path, module())
    for name, tensor in resumed.items():
        torch.testing.assert_close(again.checkpoints[0].start[name], tensor, rtol=0, atol=0)
    objective, _ = problem(again, images=truth()[0]).objective(0.0)
    assert float(objective.detach()) < 1e-10


def test_saved_and_loaded(tmp_path):
    evidence = known(momentum())
    evidence.save(tmp_path)
    again = Evidence.load(tmp_path, module())
    assert [c.step for c in again.checkpoints] == [2, 3]
    for ours, theirs in zip(evidence.checkpoints, again.checkpoints, strict=True):
        torch.testing.assert_close(ours.params, theirs.params, rtol=0, atol=0)
        assert theirs.resumed is None


def test_in_the_span_refining_ends_at_the_truth():
    evidence = known(Recipe(SGD(lr=0.1), epochs=5))
    method = Simudy(labels=truth()[1], noise=0.01, start=truth()[0])
    search = Search(method.problem(evidence, seed=0), Outer(iterations=3, lr=1e-3, refine=20))
    found = search.run()
    torch.testing.assert_close(found.images, truth()[0], rtol=1e-3, atol=1e-3)


def test_a_search_goes_on_where_it_was_left():
    evidence, outer = known(momentum()), Outer(iterations=6)
    whole = Search(problem(evidence), outer)
    whole_end = whole.run().images
    begun = Search(problem(evidence), outer)
    for _ in range(3):
        begun.step()
    resumed = Search(problem(evidence), outer)
    resumed.load_state_dict(begun.state_dict())
    torch.testing.assert_close(resumed.run().images, whole_end, rtol=0, atol=0)


def test_evenly():
    assert evenly(0, 5) == []
    assert evenly(9, 10) == list(range(1, 10))
    with pytest.raises(SimudyError, match="has 9 between"):
        evenly(10, 10)


def broken(change):
    evidence = known(momentum())
    first, second = evidence.checkpoints
    inside = {
        "order": (second, first),
        "zero": (dataclasses.replace(first, step=0), second),
        "nan": (first.mapped(lambda p: {k: v * float("nan") for k, v in p.items()}), second),
        "shape": (first.mapped(lambda p: {k: v[:1] for k, v in p.items()}), second),
        "missing": (first.mapped(lambda p: dict(list(p.items())[1:])), second),
        "still": (dataclasses.replace(first, params=second.params), second),
    }[change]
    return dataclasses.replace(evidence, checkpoints=inside)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("order", "ascending"),
        ("zero", "numbers from 1"),
        ("nan", "after step 2 hold NaN"),
        ("shape", "after step 2: '1.weight' has shape"),
        ("missing", "after step 2 lack '1.weight'"),
        ("still", "leave one out"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    with pytest.raises(SimudyError, match=said):
        broken(change)


def test_settings_that_do_not_fit_are_refused():
    evidence = known(momentum())
    with pytest.raises(SimudyError, match="after 3 steps, where the recipe has 3"):
        problem(evidence, recipe=momentum(epochs=3))
    with pytest.raises(SimudyError, match="is for a run simulated in one piece"):
        problem(evidence, grow_until=0.5)
    with pytest.raises(SimudyError, match=r"use Simudy\(\)"):
        Surrogate().problem(evidence, seed=0)
