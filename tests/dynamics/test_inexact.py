"""``Truncated`` and ``FirstOrder``: exactly the inexact derivative that each is named after."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from unrolled import batches, network, plain_loss, sgd, view

from simudy import (
    SGD,
    Direct,
    Factored,
    FirstOrder,
    Mixed,
    Recompute,
    Reverse,
    SimudyError,
    StatelessModel,
    Traced,
    Truncated,
    simulate,
)
from simudy.dynamics import tree

pytestmark = pytest.mark.usefixtures("float64")

INNER = Direct(), Recompute(2)
GRADIENTS = (
    *(Reverse(), Mixed(), Traced(), FirstOrder()),
    *(Factored(layers="all"), Factored(Mixed(), layers="all")),
)
MODES = list(itertools.product(INNER, GRADIENTS))


def learned(*values: float) -> list[Tensor]:
    return [torch.tensor(value, requires_grad=True) for value in values]


def assert_same_gradients(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    found, expected = (torch.autograd.grad(x, inputs, allow_unused=True) for x in (ours, theirs))
    assert any(g is not None and g.any() for g in expected)
    for a, b in zip(found, expected, strict=True):
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        torch.testing.assert_close(a + 0 * b, b + 0 * a, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("last", [1, 3, 5, 7])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_truncation_is_detaching_before_the_last_steps(mode, last):
    module, (images, labels) = network(), batches(5)
    model, first = StatelessModel(module), isinstance(mode[1], FirstOrder)
    data = [(x.detach() if first else x, labels) for x in images]
    start = {k: p.clone().requires_grad_() for k, p in model.params.items()}
    lr, momentum = learned(0.3, 0.9)
    end, state, seen = simulate(
        model.loss, start, data, SGD(lr, momentum),
        adjoint=Truncated(last, mode[0]), gradient=mode[1], return_state=True,
        observe=lambda t, params, loss: loss,
    )  # fmt: skip
    cut = 5 - last if last < 5 else None
    theirs = sgd(
        plain_loss(module), start, data, lr=lr, momentum=momentum, cut=cut, first_order=first
    )
    ours = view(end) + view(state) + torch.stack(seen[max(5 - last, 0) :]).sum()
    other = view(theirs.params) + view(theirs.state)
    other = other + torch.stack(theirs.losses[max(5 - last, 0) :]).sum()
    shared = [] if first else images
    assert_same_gradients(ours, other, [*shared, lr, momentum, *start.values()])
    assert not any(loss.requires_grad for loss in seen[: max(5 - last, 0)])
    torch.testing.assert_close(torch.stack(seen), torch.stack(theirs.losses))


@pytest.mark.parametrize("gradient", GRADIENTS[:3], ids=str)
def test_truncation_in_forward_mode_is_what_it_is_in_reverse(gradient):
    model, (images, labels) = StatelessModel(network()), batches(1)
    x, v = images[0].detach(), torch.randn(6, 4)

    def outcome(x: Tensor) -> Tensor:
        ways: dict = {"adjoint": Truncated(2), "gradient": gradient}
        return view(simulate(model.loss, model.params, [(x, labels)] * 5, SGD(0.3, 0.9), **ways))

    slope = torch.func.grad(outcome)(x)
    exact = torch.func.grad(
        lambda x: view(simulate(model.loss, model.params, [(x, labels)] * 5, SGD(0.3, 0.9)))
    )(x)
    assert (slope - exact).norm() > 0.1 * exact.norm()
    assert float(torch.func.jvp(outcome, (x,), (v,))[1]) == pytest.approx(float((slope * v).sum()))
    torch.testing.assert_close(torch.func.jacfwd(outcome)(x), slope)
    torch.testing.assert_close(
        torch.func.hessian(outcome)(x), torch.func.jacrev(torch.func.jacrev(outcome))(x)
    )
    several = torch.func.vmap(torch.func.grad(outcome))(torch.stack([x, x + 1]))
    torch.testing.assert_close(several[0], slope)


@pytest.mark.parametrize("inner", INNER, ids=str)
def test_first_order_is_autograd_without_second_derivatives(inner):
    module, (images, labels) = network(), batches(5)
    model, data = StatelessModel(module), [(x.detach(), labels) for x in images]
    start = {k: p.clone().requires_grad_() for k, p in model.params.items()}
    before = {k: torch.randn_like(p, requires_grad=True) for k, p in start.items()}
    lr, momentum = learned(0.3, 0.9)
    end, state = simulate(
        model.loss, start, data, SGD(lr, momentum), state=before, return_state=True,
        adjoint=inner, gradient=FirstOrder(),
    )  # fmt: skip
    theirs = sgd(
        plain_loss(module), start, data, lr=lr, momentum=momentum, state=before, first_order=True
    )
    assert_same_gradients(
        view(end) + view(state),
        view(theirs.params) + view(theirs.state),
        [lr, momentum, *start.values(), *before.values()],
    )


def test_first_order_maml_is_the_gradient_at_the_end():
    model, (images, labels) = StatelessModel(network()), batches(4)
    data, target = [(x.detach(), labels) for x in images[:3]], (images[3].detach(), labels)

    def outcome(start: tree.Params) -> Tensor:
        end = simulate(model.loss, start, data, SGD(0.3), gradient=FirstOrder())
        return model.loss(end, target)

    end = simulate(model.loss, model.params, data, SGD(0.3))
    expected = torch.func.grad(model.loss)(end, target)
    torch.testing.assert_close(torch.func.grad(outcome)(model.params), expected)
    v = tree.map(torch.randn_like, expected)
    slope = torch.func.jvp(outcome, (model.params,), (v,))[1]
    torch.testing.assert_close(slope, tree.dot(v, expected))
    tasks = tree.map(lambda p: torch.stack([p, p + 1]), model.params)
    several = torch.func.vmap(torch.func.grad(outcome))(tasks)
    torch.testing.assert_close(tree.map(lambda p: p[0], several), expected)


def test_first_order_over_a_batch_of_tasks():
    model, (images, labels) = StatelessModel(network()), batches(2)

    def outcome(start: tree.Params, x: Tensor) -> Tensor:
        end = simulate(model.loss, start, [(x, labels)], SGD(0.3), gradient=FirstOrder())
        return model.loss(end, (x, labels))

    tasks = torch.stack([x.detach() for x in images])
    over = torch.func.vmap(torch.func.grad(outcome), in_dims=(None, 0))(model.params, tasks)
    alone = torch.func.grad(outcome)(model.params, tasks[1])
    torch.testing.assert_close(tree.map(lambda g: g[1], over), alone)


def _closed(params: Any, batch: Any, held: Tensor) -> Tensor:
    return (params["w"] * held - batch[0]).square().sum()


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda run, x: run(x), r"no derivative by the batches"),
        (lambda run, x: torch.func.grad(run)(x.detach()), r"no derivative by the batches"),
        (lambda run, x: torch.func.jvp(run, (x.detach(),), (x.detach(),)), r"by the batches"),
        (lambda run, x: run(x.detach(), held=x), r"not in params: detach\(\) it"),
        (lambda run, x: run(x.detach(), gradient=Factored(FirstOrder(), "all")), "use it alone"),
        (lambda run, x: run(x.detach(), adjoint=Truncated(0)), r"Truncated\(last=0\)"),
    ],
)
def test_what_would_be_lost_in_silence_is_refused(act, message):
    def run(x: Tensor, held: Any = 1.0, **ways: Any) -> Tensor:
        return simulate(
            lambda params, batch: _closed(params, batch, held), {"w": torch.ones(2)}, [(x,)] * 2,
            SGD(0.1), **{"gradient": FirstOrder(), **ways},
        )["w"].sum()  # fmt: skip

    with pytest.raises(SimudyError, match=message):
        act(run, torch.ones(2, requires_grad=True))


def test_the_planner_is_told_memory_and_never_makes_a_run_inexact():
    assert Truncated(4).kept(100, per_step=7, params=3) == Direct().kept(4, per_step=7, params=3)
    assert Truncated(4).leaner(100) == Truncated(4, Recompute(2))
    assert Truncated(4, Recompute(2)).leaner(100) is None
    assert FirstOrder().kept({"w": torch.ones(3)}, 10**9) == 24 and FirstOrder().leaner() is None
    ways: list[Any] = [Direct(), Reverse(), Mixed(), Factored()]
    met = [way.leaner(16) if isinstance(way, Direct) else way.leaner() for way in ways]
    assert not any(isinstance(way, (Truncated, FirstOrder)) for way in met)
