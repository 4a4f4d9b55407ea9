"""What cannot be simulated is said in one line, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simudy import SGD, Mixed, Recompute, Reverse, SimudyError, StatelessModel, Traced, simulate
from simudy.dynamics.adjoint import Truncated

NET = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
BATCH = torch.randn(6, 4), torch.arange(6) % 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"adjoint": Recompute}, "is no adjoint: give an object such as"),
        ({"adjoint": Mixed()}, r"adjoint=Mixed\(\) is no adjoint"),
        ({"adjoint": "recompute"}, "is no adjoint"),
        ({"gradient": Mixed}, "is no gradient: give an object such as Reverse"),
        ({"gradient": Recompute(2)}, "is no gradient"),
        (
            {"optimizer": torch.optim.SGD(NET.parameters(), 0.1)},
            r"give from_torch\(optimizer, module",
        ),
        ({"optimizer": SGD}, "is no rule"),
        ({"optimizer": 0.1}, "is no rule"),
        ({"optimizer": [SGD(), "SGD"]}, "'SGD' is no rule"),
        ({"steps": 2.5}, "give a whole number"),
        ({"steps": -1}, "give a whole number"),
        ({"batches": 3, "steps": 2}, "batches are a int: give a list"),
        ({"batches": None}, "batches are a NoneType"),
        ({"batches": [{"x": 1}] * 2}, r"a batch is a dict.*write loss\(params, batch\)"),
        ({"batches": [(BATCH[0],)] * 2}, "a batch is a tuple of 1"),
        ({"batches": BATCH[0]}, "a batch is a Tensor"),
        ({"batches": [(BATCH[0].numpy(), BATCH[1])] * 2}, "are a ndarray: give a tensor"),
    ],
)
def test_arguments_of_another_kind(change, message):
    model = StatelessModel(NET)
    asked: dict[str, Any] = {"batches": [BATCH] * 2, "optimizer": SGD(0.1), **change}
    with pytest.raises(SimudyError, match=message):
        simulate(model.loss, model.params, **asked)


@pytest.mark.parametrize("value", [0, -1, 1.5, None])
def test_a_number_of_steps_that_is_none(value):
    with pytest.raises(SimudyError, match="differentiate the last 1 or more"):
        Truncated(last=value)
    with pytest.raises(SimudyError, match="every 1 or more"):
        Recompute(every=value)


@pytest.mark.parametrize("gradient", [Reverse(), Mixed(), Traced()], ids=str)
def test_a_loss_that_takes_a_derivative_inside_by_autograd_is_told_of_torch_func(gradient):
    model, (images, _) = StatelessModel(nn.Linear(4, 1)), BATCH

    def by_autograd(params: Any, batch: Any) -> Tensor:  # as gradient penalties are written
        images = batch[0].detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(params, images).sum(), images, create_graph=True)
        return (slope.norm() - 1).square()

    def by_func(params: Any, batch: Any) -> Tensor:
        slope = torch.func.grad(lambda images: model(params, images).sum())(batch[0])
        return (slope.norm() - 1).square()

    ways: dict = {"optimizer": SGD(0.1), "gradient": gradient}
    with pytest.raises(SimudyError, match=r"by torch.func \(grad, vjp, jvp\)"):
        simulate(by_autograd, model.params, [(images,)], **ways)
    params = {k: p.clone().requires_grad_() for k, p in model.params.items()}
    by_autograd(params, (images,)).backward()
    end = simulate(by_func, model.params, [(images,)], **ways)
    expected = model.params["weight"] - 0.1 * params["weight"].grad  # type: ignore[operator]
    torch.testing.assert_close(end["weight"], expected)
