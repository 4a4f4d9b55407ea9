"""State in, state out: a run that goes on is the run that never stopped."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unrolled import batches, network, plain_loss, sgd, view

from simudy import (
    SGD,
    Adam,
    AdamW,
    Direct,
    Factored,
    Mixed,
    Recompute,
    Reverse,
    SimudyError,
    StatelessModel,
    Traced,
    from_torch,
    simulate,
)
from simudy.dynamics import tree
from simudy.dynamics.optim import (
    Accumulated,
    Adadelta,
    Adagrad,
    Adamax,
    Averaged,
    Clipped,
    Groups,
    Higher,
    Lion,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rule,
    TorchOpt,
)
from simudy.testing import directional

pytestmark = pytest.mark.usefixtures("float64")

ADJOINTS = Direct(), Recompute(2)
DENSE = Reverse(), Mixed(), Traced()
MODES = list(itertools.product(ADJOINTS, (*DENSE, Factored(layers="all"))))


def torchopt_adam() -> Rule:
    import torchopt

    return TorchOpt(torchopt.adam, {"lr": 0.02})


RULES: list[Any] = [
    SGD(0.1),
    SGD(0.1, 0.9, nesterov=True),
    Adam(0.02, amsgrad=True),
    AdamW(0.02),
    NAdam(0.02),
    RAdam(0.02),
    Adamax(0.02),
    RMSprop(0.02, momentum=0.9, centered=True),
    Adagrad(0.02),
    Adadelta(0.02),
    Lion(0.02),
    Muon(0.02, others=SGD(0.1)),
    Clipped(SGD(0.1, 0.9), max_norm=0.1),
    Accumulated(SGD(0.1, 0.9), every=3),
    Averaged(SGD(0.1), decay=0.9),
    Groups({"*.bias": None, "*": Adam(0.02)}),
    Higher(torch.optim.Adagrad, {"lr": 0.02}),
    Higher(torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}),
    torchopt_adam(),
]


def in_two(model: StatelessModel, data: list, rule: Any, mode: Any = MODES[0]) -> Any:
    ways: dict = dict(zip(("adjoint", "gradient"), mode, strict=True))
    half = len(data) // 2
    params, state = simulate(model.loss, model.params, data[:half], rule, return_state=True, **ways)
    return simulate(model.loss, params, data[half:], rule, state=state, return_state=True, **ways)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_five_steps_and_five_are_ten_to_the_bit(rule):
    model, (images, labels) = StatelessModel(network()), batches(10)
    data = [(x, labels) for x in images]
    once = simulate(model.loss, model.params, data, rule, return_state=True)
    twice = in_two(model, data, rule)
    found, expected = tree.leaves(twice), tree.leaves(once)
    assert len(found) == len(expected) > 0
    assert all(map(torch.equal, found, expected))
    end = simulate(model.loss, model.params, data, rule)
    assert all(torch.equal(p, end[k]) for k, p in rule.final(*twice).items())


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_derivative_goes_on_as_well(mode):
    """Through params and state, of params and state, by everything, against autograd alone."""
    module, (images, labels) = network(), batches(10)
    model = StatelessModel(module)
    lr, momentum = (torch.tensor(v, requires_grad=True) for v in (0.1, 0.9))
    params, state = in_two(model, [(x, labels) for x in images], SGD(lr, momentum), mode)
    theirs = sgd(
        plain_loss(module),
        model.params,
        [(x, labels) for x in images],
        lr=lr,
        momentum=momentum,
    )
    inputs = [*images, lr, momentum]
    found = torch.autograd.grad(view(params) + view(state), inputs)
    expected = torch.autograd.grad(view(theirs.params) + view(theirs.state), inputs)
    for ours, other in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_derivative_by_a_state_that_is_given(mode):
    module, (images, labels) = network(), batches(3)
    model = StatelessModel(module)
    start = {k: torch.randn_like(p, requires_grad=True) for k, p in model.params.items()}
    data = [(x.detach(), labels) for x in images]
    ways: dict = dict(zip(("adjoint", "gradient"), mode, strict=True))
    end = simulate(model.loss, model.params, data, SGD(0.1, 0.9), state=start, **ways)
    theirs = sgd(plain_loss(module), model.params, data, lr=0.1, momentum=0.9, state=start)
    wanted = list(start.values())
    found = torch.autograd.grad(view(end), wanted)
    for ours, other in zip(found, torch.autograd.grad(view(theirs.params), wanted), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_forward_mode_and_vmap_through_the_state(mode):
    model, (images, labels) = StatelessModel(network()), batches(4)
    data, ways = [(x.detach(), labels) for x in images], {"adjoint": mode[0], "gradient": mode[1]}
    _, state = simulate(model.loss, model.params, data, SGD(0.3, 0.9), return_state=True)
    v = tree.map(torch.randn_like, state)

    def outcome(state: Any, **ways: Any) -> Tensor:
        end, after = simulate(
            model.loss, model.params, data, SGD(0.3, 0.9), state=state, return_state=True, **ways
        )
        return view(end).cos() + view(after).sin()

    def of(state: Any) -> Tensor:
        return outcome(state, **ways)

    slope, exact = torch.func.grad(of)(state), torch.func.grad(outcome)(state)
    torch.testing.assert_close(slope, exact, rtol=1e-9, atol=1e-12)
    tangent = torch.func.jvp(of, (state,), (v,))[1]
    torch.testing.assert_close(tangent, tree.dot(exact, v), rtol=1e-9, atol=1e-12)
    curved = torch.func.jvp(torch.func.grad(of), (state,), (v,))[1]  # a column of the hessian
    expected = torch.func.grad(lambda at: tree.dot(torch.func.grad(outcome)(at), v))(state)
    torch.testing.assert_close(curved, expected, rtol=1e-8, atol=1e-11)
    both = torch.func.vmap(torch.func.grad(of))(tree.map(lambda b: torch.stack([b, -b]), state))
    torch.testing.assert_close(tree.map(lambda g: g[0], both), exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gradient", DENSE, ids=str)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_the_derivative_by_the_moments_of_adam(adjoint, gradient):
    """Against finite differences, for plain torch does not differentiate its Adam's state."""
    model, (images, labels) = StatelessModel(network()), batches(6)
    data, rule = [(x.detach(), labels) for x in images], Adam(0.05, eps=1e-3)
    start, state = simulate(model.loss, model.params, data[:3], rule, return_state=True)
    moments = [leaf.detach() for leaf in tree.leaves(state)]
    along = [leaf * torch.rand_like(leaf) for leaf in moments]

    def outcome(moments: list[Tensor], adjoint: Any = Direct(), gradient: Any = Reverse()):  # noqa: B008
        given = tree.rebuild(state, moments)
        ways = {"adjoint": adjoint, "gradient": gradient}
        return view(simulate(model.loss, tree.detach(start), data[3:], rule, state=given, **ways))

    wanted = [leaf.clone().requires_grad_() for leaf in moments]
    grads = torch.autograd.grad(outcome(wanted, adjoint, gradient), wanted)
    slope = sum(float((g * d).sum()) for g, d in zip(grads, along, strict=True))
    assert slope == pytest.approx(directional(outcome, moments, along, step=1e-5), rel=1e-6)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_a_live_optimizer_hands_its_state_over_and_gets_it_back(kind):
    module, (images, labels) = network(), batches(8)
    options = {"lr": 0.02, **({"momentum": 0.9} if kind in ("SGD", "RMSprop") else {})}
    optimizer = getattr(torch.optim, kind)(module.parameters(), **options)

    def train(data: list[Tensor]) -> None:
        for x in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x.detach()), labels).backward()
            optimizer.step()

    train(images[:4])
    model, live = StatelessModel(module), from_torch(optimizer, module)
    state, rule = live.init(model.params), live.rule  # type: ignore[attr-defined]
    train(images[4:])
    data = [(x, labels) for x in images[4:]]
    params, state = simulate(model.loss, model.params, data, rule, state=state, return_state=True)
    torch.testing.assert_close(params, {k: p.detach() for k, p in module.named_parameters()})
    now = from_torch(optimizer, module).init(tree.detach(params))
    for ours, theirs in zip(tree.leaves(state), tree.leaves(now), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def quadratic(params: Any, batch: Any) -> Tensor:
    return (params["w"] - batch[0]).square().sum()


def test_a_run_without_steps_hands_on_what_it_was_given():
    params, state = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    assert simulate(quadratic, params, [], SGD(), state=state, return_state=True) == (params, state)
    assert simulate(quadratic, params, [], SGD(), return_state=True) == (params, None)
    assert simulate(quadratic, params, [], SGD()) is params


@pytest.mark.parametrize(
    "rule, state, message",
    [
        (SGD(0.1, 0.9), {"w": torch.ones(1)}, r"of 'w' has shape \(1,\), where \(2,\) is due"),
        (SGD(0.1, 0.9), {"v": torch.ones(2)}, "of 'w' is missing"),
        (SGD(0.1, 0.9), torch.ones(2), "is a Tensor, no dict"),
        (Adam(0.1), {"w": torch.ones(2)}, "of 'w' is a Tensor, no Moments"),
        (Adagrad(0.1), SGD(0.1).init({"w": torch.ones(2)}), "of 'w' is a NoneType, no State"),
        (Averaged(SGD(0.1)), {"w": None}, "is a dict, no State"),
        (Clipped(Adam(0.1)), {"w": None}, "of 'w' is a NoneType, no Moments"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(rule, state, message):
    with pytest.raises(SimudyError, match=message):
        simulate(quadratic, {"w": torch.ones(2)}, [(torch.zeros(2),)], rule, state=state)
