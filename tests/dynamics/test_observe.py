"""What a run is seen to do on its way: exact, under every adjoint and gradient mode."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from unrolled import batches, network, plain_loss, sgd, view

from simudy import (
    SGD,
    Adam,
    Direct,
    Factored,
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
from simudy.dynamics.optim import Averaged
from simudy.testing import directional

pytestmark = pytest.mark.usefixtures("float64")

MODES = list(
    itertools.product(
        (Direct(), Recompute(2)),
        (Reverse(), Mixed(), Traced(), Factored(layers="all"), Factored(Mixed(), layers="all")),
    )
)


def _sum(numbers: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(numbers)).sum()


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_iterates_and_losses_are_those_of_torch_with_their_derivatives(mode):
    module, (images, labels) = network(), batches(5)
    model, data = StatelessModel(module), [(x, labels) for x in images]
    lr = torch.tensor(0.3, requires_grad=True)

    def see(step: int, params: tree.Params, loss: Tensor) -> Any:
        return {"at": step, "loss": loss, "iterate": params}

    end, seen = simulate(
        model.loss, model.params, data, SGD(lr, 0.9),
        adjoint=mode[0], gradient=mode[1], observe=see,
    )  # fmt: skip
    theirs = sgd(plain_loss(module), model.params, data, lr=lr, momentum=0.9)
    assert [each["at"] for each in seen] == list(range(5))
    assert all(torch.equal(p + 0.0, seen[-1]["iterate"][k] + 0.0) for k, p in end.items())
    weights = range(1, 6)
    ours = _sum(w * (s["loss"] + view(s["iterate"])) for w, s in zip(weights, seen, strict=True))
    losses, iterates = theirs.losses, theirs.iterates
    other = _sum(w * (x + view(p)) for w, x, p in zip(weights, losses, iterates, strict=True))
    torch.testing.assert_close(ours, other, rtol=1e-12, atol=0)
    found = torch.autograd.grad(ours, [*images, lr])
    for a, b in zip(found, torch.autograd.grad(other, [*images, lr]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_per_step_losses_on_other_images_as_maml_plus_plus_has_them(mode):
    """Σ_t w_t ℓ(θ_t, target), by θ0, the learned rates and the images, against differences."""
    model, (images, labels) = StatelessModel(network()), batches(3)
    target = torch.randn(6, 4), labels
    leaves = [x.detach() for x in images]
    leaves += [torch.tensor([0.1, 0.2, 0.3]), *model.params.values()]

    def outcome(at: list[Tensor], mode: Any = MODES[0]) -> Tensor:
        rates, params = at[3], dict(zip(model.params, at[4:], strict=True))
        _, seen = simulate(
            model.loss,
            params,
            [(x, labels) for x in at[:3]],
            [SGD(r, 0.9) if isinstance(mode[1], Factored) else Adam(r, eps=1e-3) for r in rates],
            adjoint=mode[0],
            gradient=mode[1],
            observe=lambda t, params, loss: (t + 1) * model.loss(params, target),
        )
        return torch.stack(seen).sum()

    wanted = [leaf.clone().requires_grad_() for leaf in leaves]
    along = [torch.randn_like(leaf) for leaf in leaves]
    grads = torch.autograd.grad(outcome(wanted, mode), wanted)
    slope = sum(float((g * d).sum()) for g, d in zip(grads, along, strict=True))
    plain = Direct(), Factored(layers="all") if isinstance(mode[1], Factored) else Reverse()
    expected = directional(lambda at: outcome(at, plain), leaves, along, step=1e-4)
    assert slope == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_forward_mode_sees_the_same(mode):
    model, (images, labels) = StatelessModel(network()), batches(3)
    x, v = images[0].detach(), torch.randn(6, 4)

    def outcome(x: Tensor, mode: Any) -> Tensor:
        ways: dict = dict(zip(("adjoint", "gradient"), mode, strict=True))
        data = [(x, labels)] * 3
        seen = simulate(
            model.loss, model.params, data, SGD(0.3), observe=lambda t, p, loss: loss, **ways
        )[1]
        return torch.stack(seen).cos().sum()

    expected = directional(lambda at: outcome(at[0], MODES[0]), [x], [v], step=1e-4)
    assert float(torch.func.jvp(lambda x: outcome(x, mode), (x,), (v,))[1]) == pytest.approx(
        expected, rel=1e-6
    )
    hessian = torch.func.hessian(lambda x: outcome(x, mode))(x)
    other = torch.func.jacrev(torch.func.jacrev(lambda x: outcome(x, MODES[0])))(x)
    torch.testing.assert_close(hessian, other, rtol=1e-8, atol=1e-12)


def test_the_state_is_kept_beside_what_is_seen_and_an_average_is_of_the_iterates_seen():
    model, (images, labels) = StatelessModel(network()), batches(4)
    data, rule = [(x.detach(), labels) for x in images], Averaged(SGD(0.3), decay=None)
    _, state, seen = simulate(
        model.loss, model.params, data, rule, return_state=True, observe=lambda t, p, loss: p
    )
    mean = tree.map(lambda *ps: sum(ps) / 4, *seen)
    torch.testing.assert_close(rule.final(seen[-1], state), mean)
    torch.testing.assert_close(simulate(model.loss, model.params, data, rule), mean)


def test_what_is_seen_of_a_run_without_steps_is_nothing():
    model = StatelessModel(network())
    seen = simulate(model.loss, model.params, [], SGD(), observe=lambda t, p, loss: loss)
    assert seen == (model.params, [])


def test_a_tensor_by_the_back_door_is_refused_where_it_would_be_lost():
    model, (images, labels) = StatelessModel(network()), batches(2)
    data, target = [(x, labels) for x in images], torch.randn(6, 4, requires_grad=True)

    def run(adjoint: Any) -> Tensor:
        return simulate(
            model.loss, model.params, data, SGD(0.3), adjoint=adjoint,
            observe=lambda t, params, loss: model.loss(params, (target, labels)),
        )[1][-1]  # fmt: skip

    assert torch.autograd.grad(run(Direct()), target)[0].any()
    with pytest.raises(SimudyError, match="its gradient would be lost"):
        run(Recompute(2))


class Box:
    def __init__(self, held: Tensor) -> None:
        self.held = held


HIDDEN: list[Any] = [
    lambda t, params, loss: Box(loss),
    lambda t, params, loss: {"in a set": {loss}},
    lambda t, params, loss: torch.distributions.Normal(loss, 1.0),
    lambda t, params, loss: lambda: loss,
    lambda t, params, loss: (p.sum() for p in params.values()),
    lambda t, params, loss: params.values(),
]


@pytest.mark.parametrize("see", HIDDEN)
def test_tensors_where_a_replay_does_not_see_them_are_refused_not_cut_off(see):
    model, (images, labels) = StatelessModel(network()), batches(3)
    data = [(x, labels) for x in images]
    simulate(model.loss, model.params, data, SGD(0.3), observe=see)
    with pytest.raises(SimudyError, match=r"holds tensors where Recompute\(\) does not see them"):
        simulate(model.loss, model.params, data, SGD(0.3), observe=see, adjoint=Recompute(2))


def test_a_state_of_another_kind_is_refused_as_well():
    class Own(SGD):
        def step(self, grad: Tensor, state: Any, param: Tensor) -> Any:
            return param - grad, Box(grad)

    model, (images, labels) = StatelessModel(network()), batches(3)
    ways: dict = {"adjoint": Recompute(2), "return_state": True}
    with pytest.raises(SimudyError, match="a Box that a step gave out"):
        simulate(model.loss, model.params, [(x, labels) for x in images], Own(), **ways)


def test_numbers_and_integers_are_seen_as_they_are():
    model, (images, labels) = StatelessModel(network()), batches(3)
    data = [(x, labels) for x in images]
    for adjoint in (Direct(), Recompute(2)):
        _, seen = simulate(
            model.loss, model.params, data, SGD(0.3), adjoint=adjoint,
            observe=lambda t, p, loss: (
                float(loss.detach()), "text", None, model(p, images[0]).argmax(1)
            ),
        )  # fmt: skip
        assert all(isinstance(each[0], float) and each[3].dtype == torch.int64 for each in seen)


def test_what_is_seen_is_not_written_to():
    model, (images, labels) = StatelessModel(network()), batches(3)
    data = [(x.detach(), labels) for x in images]
    with pytest.raises(SimudyError, match=r"observe writes to the parameters.*clone\(\)"):
        simulate(
            model.loss, model.params, data, SGD(0.3),
            observe=lambda t, params, loss: params["0.weight"].mul_(2.0),
        )  # fmt: skip


@pytest.mark.parametrize("adjoint", [Recompute(2), Truncated(1)], ids=str)
def test_a_derivative_inside_of_it_is_by_torch_func(adjoint):
    model, (images, labels) = StatelessModel(network()), batches(3)
    data, target = [(x, labels) for x in images], (torch.randn(6, 4), labels)

    def by_autograd(step: int, params: tree.Params, loss: Tensor) -> Any:
        return torch.autograd.grad(model.loss(params, target), list(params.values()))

    def by_func(step: int, params: tree.Params, loss: Tensor) -> Any:
        return torch.func.grad(model.loss)(params, target)

    ways: dict = {"optimizer": SGD(0.3), "adjoint": adjoint}
    with pytest.raises(SimudyError, match=r"observe takes a derivative by torch.autograd"):
        simulate(model.loss, model.params, data, observe=by_autograd, **ways)
    _, seen = simulate(model.loss, model.params, data, observe=by_func, **ways)
    end = simulate(model.loss, model.params, data, **ways)
    torch.testing.assert_close(seen[-1], torch.func.grad(model.loss)(end, target))
