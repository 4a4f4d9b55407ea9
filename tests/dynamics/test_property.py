"""Any draw of network, rule, batches and way to run them is the plain torch loop: its values; its
derivatives by finite differences of that loop, which share nothing with ours; and second
derivatives by finite differences of first ones, which are held against the loop themselves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from drawn import PENALTY, Case, batches, cases, native, network, options, rates, wrap
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from plain import again, loop, optimizer_of, slope, started
from torch import Tensor

from simudy import StatelessModel, simulate
from simudy.dynamics import tree
from simudy.dynamics.adjoint import Direct
from simudy.dynamics.gradient import Reverse
from simudy.dynamics.optim import from_torch, scaled

TOLERANCE = 1e-8


pytestmark = pytest.mark.usefixtures("float64")


class Problem:
    """A draw, as a function of everything it is differentiated by."""

    def __init__(self, case: Case) -> None:
        self.case, self.module, self.options = case, network(case), options(case)
        self.data = batches(case)
        self.optimizer = optimizer_of(case, self.module, self.options)
        started(case, self.module, self.optimizer, self.data)
        self.model = StatelessModel(self.module)
        self.learned = [k for k, v in self.options.items() if case.learned and type(v) is float]
        self.at = [
            *(t for batch in self.data for t in batch if t.is_floating_point()),
            *self.model.params.values(),
            *(torch.tensor(self.options[name]) for name in self.learned),
        ]
        torch.manual_seed(case.seed + 1)
        self.along = [torch.randn_like(x) for x in self.at]
        for i, name in enumerate(self.learned, len(self.at) - len(self.learned)):
            value = self.options[name]  # momenta stay below 1, and all above 0
            self.along[i] = torch.tensor(0.3 * min(value, abs(1 - value)))
        self.view = {n: torch.randn_like(p) for n, p in self.model.params.items()}

    def split(self, inputs: Sequence[Any]) -> tuple[list[list[Any]], dict, dict]:
        """Batches (all epochs), θ0 and fields of the rule."""
        fresh = iter(inputs)
        data = [[next(fresh) if t.is_floating_point() else t for t in b] for b in self.data]
        theta = {name: next(fresh) for name in self.model.params}
        learned = dict(zip(self.learned, fresh, strict=True))
        return data * self.case.epochs, theta, {**self.options, **learned}

    def outcome(self, end: dict[str, Tensor]) -> Tensor:
        seen = ((self.view[name] * p.sin()).sum() for name, p in end.items())
        return sum(seen, torch.zeros(()))

    def plain(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """The end of the torch loop."""
        data, theta, fields = self.split([x.detach() for x in inputs])
        fields = {k: float(v) if k in self.learned else v for k, v in fields.items()}
        module, optimizer = again(self.case, self.module, self.optimizer, fields)
        module.load_state_dict(theta, strict=False)
        return loop(self.case, module, optimizer, data)

    def ours(self, inputs: Sequence[Tensor], **modes: Any) -> dict[str, Tensor]:
        """The end of the simulation, in the modes of the draw unless told otherwise."""
        case, (data, theta, fields) = self.case, self.split(inputs)
        rule = from_torch(self.optimizer, self.module) if case.live else native(case, fields)
        rules = scaled(wrap(case, rule), len(data), lr=rates(case))
        modes = modes or {"adjoint": case.adjoint, "gradient": case.gradient}
        end = simulate(self.loss, theta, [tuple(b) for b in data], rules, **modes)
        return {n: p.dense() if hasattr(p, "dense") else p for n, p in end.items()}

    def loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        loss = self.model.loss(params, batch)
        return loss + PENALTY * tree.dot(params, params) if self.case.penalty else loss

    def derivative(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The end, the slope of the outcome (or its curvature) along ``along``, and the size of the
        vector it is a component of.
        """
        if self.case.vmap == "no":
            at = [x.clone().requires_grad_() for x in self.at]
            end = self.ours(at)
            return end, *self._backward(self.outcome(end), at)
        if self.case.vmap == "inside":  # autograd over vmap
            at = [x.clone().requires_grad_() for x in self.at]
            both = torch.func.vmap(self.ours)(self.doubled(at))
            end = {n: p[0] for n, p in both.items()}
            return end, *self._backward(self.outcome(end), at)
        both = torch.func.vmap(self._functional)(self.doubled(self.at))
        return {n: p[0] for n, p in both[0].items()}, both[1][0], both[2][0]

    def slope(self, inputs: Sequence[Tensor]) -> Tensor:
        """The first derivative along ``along`` by the plainest of our ways."""
        at = [x.detach().requires_grad_() for x in inputs]
        value = self.outcome(self.ours(at, adjoint=Direct(), gradient=Reverse()))
        grads = torch.autograd.grad(value, at, allow_unused=True, materialize_grads=True)
        return _dot(grads, self.along)

    def doubled(self, at: Sequence[Tensor]) -> list[Tensor]:
        """These inputs, and others beside them."""
        return [torch.stack([x, x + 0.2 * d]) for x, d in zip(at, self.along, strict=True)]

    def moved(self, step: float) -> list[Tensor]:
        return [x + step * d for x, d in zip(self.at, self.along, strict=True)]

    def _backward(self, value: Tensor, at: list[Tensor]) -> tuple[Tensor, Tensor]:
        how: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        if self.case.order == 2:
            grads = torch.autograd.grad(value, at, create_graph=True, **how)
            value = _dot(grads, self.along)
        grads = torch.autograd.grad(value, at, **how)
        return _dot(grads, self.along), _dot(grads, grads).sqrt()

    def _functional(self, inputs: list[Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """By ``torch.func`` alone, for vmap over it."""

        def value(at: list[Tensor], order: int) -> Tensor:
            if order == 0:
                return self.outcome(self.ours(at))
            return _dot(torch.func.grad(value)(at, order - 1), self.along)

        grads = torch.func.grad(value)(inputs, self.case.order - 1)
        return self.ours(inputs), _dot(grads, self.along), _dot(grads, grads).sqrt()


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def check(case: Case) -> None:
    """Values and derivatives of a draw are those of the loop."""
    problem = Problem(case)
    expected = problem.plain(problem.at)
    end, found, size = problem.derivative()
    assert end.keys() == expected.keys()
    off, scale = (tree.norm(d) for d in (tree.sub(tree.detach(end), expected), expected))
    assert off <= TOLERANCE * scale, f"values off by {off / scale:.1e}"

    first = found if case.order == 1 else problem.slope(problem.at)
    _require_slope(first, lambda h: problem.outcome(problem.plain(problem.moved(h))), size)
    if case.order == 2:
        _require_slope(found, lambda h: problem.slope(problem.moved(h)), size)


def _require_slope(found: Tensor, fn: Callable[[float], Tensor], norm: Tensor) -> None:
    """``found`` is the derivative of ``fn`` at 0, up to rounding of a vector of this norm."""
    size = max(float(norm), abs(float(found)))
    assert math.isfinite(size)
    enough = 0.1 * TOLERANCE * size
    true, unsure = slope(lambda h: fn(h).item(), enough=enough)
    assume(unsure <= enough)  # or there is a kink within reach, and nothing to compare with
    off = abs(found.item() - true)
    assert off <= TOLERANCE * size, f"{found} is not {true}: {off / size:.1e}"


def _draw(draws: int, part: int) -> None:
    """Draw and check; after ten draws hypothesis would rather vary the ones it had."""
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    how = settings(max_examples=10, deadline=None, database=None, suppress_health_check=quiet)
    for run in range(draws // 10):
        seed(1000 * part + run)(how(given(cases())(check)))()


@pytest.mark.parametrize("part", range(3))
def test_any_draw_is_the_torch_loop(part):
    _draw(50, part)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3, 23))
def test_many_draws_are_the_torch_loop(part):
    _draw(100, part)


SIMPLE = Case(
    kind="rows",
    body=("linear",),
    activation="tanh",
    heads=1,
    frozen=(),
    rule="SGD",
    on=frozenset(),
    learned=False,
    wrapped=(),
    live=0,
    scheduled=False,
    penalty=False,
    adjoint=Direct(),
    gradient=Reverse(),
    sizes=(4, 4),
    epochs=1,
    labels="hard",
    weighted=False,
    vmap="no",
    order=1,
    seed=1,
)
ONCE_WRONG = {
    "fused norms, second derivative": {"body": ("layer norm",), "order": 2},
    "fused norms, autograd over vmap": {"body": ("layer norm",), "vmap": "inside"},
    "RAdam, learned beta2": {
        "rule": "RAdam",
        "on": frozenset({"beta2"}),
        "learned": True,
        "seed": 2,  # β₂ = 0.34
    },
}


@pytest.mark.parametrize("kind", ONCE_WRONG)
def test_what_was_once_wrong_is_the_torch_loop(kind):
    _check_one(dataclasses.replace(SIMPLE, **ONCE_WRONG[kind]))


def test_the_simplest_draw_is_the_torch_loop():
    _check_one(SIMPLE)


def _check_one(case: Case) -> None:
    settings(max_examples=1, deadline=None, database=None)(given(st.just(case))(check))()
