"""Parameters in any nest: the same numbers as by name, whatever the mode."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from simudy import SGD, AdamW, Direct, Factored, Mixed, Recompute, Reverse, Traced, simulate
from simudy.dynamics.nested import named, nested
from simudy.dynamics.optim import Groups
from simudy.errors import SimudyError

pytestmark = pytest.mark.usefixtures("float64")


class Head(NamedTuple):
    weight: Tensor
    bias: Tensor


def start() -> dict:
    torch.manual_seed(0)
    body = [(torch.randn(4, 3), torch.randn(4)), (torch.randn(4, 4), torch.randn(4))]
    return {"body": body, "head": Head(torch.randn(2, 4), torch.randn(2)), 0: torch.ones(())}


def loss(params: dict, batch: tuple[Tensor, Tensor]) -> Tensor:
    hidden = batch[0]
    for weight, bias in params["body"]:
        hidden = torch.nn.functional.linear(hidden, weight, bias).tanh()
    head = params["head"]
    out = torch.nn.functional.linear(hidden, head.weight, head.bias) * params[0]
    return torch.nn.functional.cross_entropy(out, batch[1])


def flat_loss(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    return loss(nested(params, LIKE), batch)


LIKE = start()


MODES = [
    (Direct(), Reverse()),
    (Recompute(every=2), Mixed()),
    (Direct(), Traced()),
    (Recompute(every=2), Factored(layers="all")),
]


@pytest.mark.parametrize("adjoint, gradient", MODES, ids=str)
def test_a_nest_is_its_tensors_by_name(adjoint, gradient):
    images = torch.randn(5, 3, requires_grad=True)
    batches = [(images, torch.arange(5) % 2)] * 4
    options = {"adjoint": adjoint, "gradient": gradient}
    rule = SGD(lr=0.1, momentum=0.9)
    there = simulate(loss, start(), batches, rule, **options)
    flat = simulate(flat_loss, named(start()), batches, rule, **options)
    assert type(there["head"]) is Head and type(there["body"][0]) is tuple and 0 in there
    slopes = []
    for params in (there, nested(flat, start())):
        assert all(
            torch.equal(a, b) for a, b in zip(named(params).values(), flat.values(), strict=True)
        )
        slopes.append(torch.autograd.grad(loss(params, batches[0]), images)[0])
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-14)


def test_groups_name_the_places_and_the_state_goes_on():
    batches = [(torch.randn(5, 3), torch.arange(5) % 2) for _ in range(4)]
    rule = Groups({"body.0.*": None, "body.*": SGD(), "*": AdamW()})
    seen: list = []
    whole, losses = simulate(
        loss,
        start(),
        batches,
        rule,
        observe=lambda t, p, value: seen.append(type(p["head"])) or value,
    )
    half, state = simulate(loss, start(), batches[:2], rule, return_state=True)
    end = simulate(loss, half, batches[2:], rule, state=state)
    assert seen == [Head] * 4 and len(losses) == 4
    assert torch.equal(whole["body"][0][0], start()["body"][0][0])
    assert all(
        torch.equal(a, b) for a, b in zip(named(end).values(), named(whole).values(), strict=True)
    )


def test_one_tensor_and_a_list_are_nests_too():
    loss = lambda w, _: (w[0] if isinstance(w, list) else w).square().sum()  # noqa: E731
    assert float(simulate(loss, torch.ones(()), [None] * 2, SGD(lr=0.25))) == 0.25
    assert float(simulate(loss, [torch.ones(())], [None] * 2, SGD(lr=0.25))[0]) == 0.25


@pytest.mark.parametrize(
    "params, message",
    [
        ({"a": [torch.ones(1), 3.0]}, "'a.1' is a float"),
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "two parameters are called 'a.b'"),
    ],
)
def test_what_is_no_nest_of_tensors_is_refused(params, message):
    with pytest.raises(SimudyError, match=message):
        simulate(loss, params, [None], SGD())
