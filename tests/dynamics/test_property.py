"""Any draw of network, rule, batches and way to run them is the plain torch loop: its values, and
its derivatives by finite differences of that loop, which share nothing with ours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from drawn import CLIP, CLIP_VALUE, EMA, Case, batches, cases, network, options, wrap
from hypothesis import HealthCheck, assume, given, seed, settings
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import simudy.dynamics.optim as ours
from simudy import StatelessModel, simulate
from simudy.dynamics import tree

torch.set_num_threads(1)
TOLERANCE = 1e-8


@pytest.fixture(autouse=True)
def _float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of arXiv:2302.06675, which torch lacks."""

    def __init__(self, params: Any, lr: float, betas: Any = (0.9, 0.99), weight_decay: float = 0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
            for p in (p for p in group["params"] if p.grad is not None):
                m = self.state[p].get("m", torch.zeros_like(p))
                p.sub_(lr * (torch.sign(beta1 * m + (1 - beta1) * p.grad) + decay * p))
                self.state[p]["m"] = beta2 * m + (1 - beta2) * p.grad


class Problem:
    """A draw, as a function of everything it is differentiated by."""

    def __init__(self, case: Case) -> None:
        self.case, self.module, self.options = case, network(case), options(case)
        self.model = StatelessModel(self.module)
        self.data = batches(case)
        self.trained = [n for n, p in self.module.named_parameters() if p.requires_grad]
        self.learned = [k for k, v in self.options.items() if case.learned and type(v) is float]
        start = dict(self.module.named_parameters())
        self.at = [
            *(t for batch in self.data for t in batch if t.is_floating_point()),
            *(start[name].detach() for name in self.trained),
            *(torch.tensor(self.options[name]) for name in self.learned),
        ]
        torch.manual_seed(case.seed + 1)
        self.along = [torch.randn_like(x) for x in self.at]
        for i, name in enumerate(self.learned, len(self.at) - len(self.learned)):
            value = self.options[name]  # momenta stay below 1, and all above 0
            self.along[i] = torch.tensor(0.3 * min(value, abs(1 - value)))
        self.view = {n: torch.randn_like(p) for n, p in start.items()}

    def split(self, inputs: Sequence[Any]) -> tuple[list[list[Any]], dict, dict]:
        """Batches (all epochs), θ0 and options of a list of inputs."""
        fresh = iter(inputs)
        data = [[next(fresh) if t.is_floating_point() else t for t in b] for b in self.data]
        theta = {name: next(fresh) for name in self.trained}
        return (
            data * self.case.epochs,
            theta,
            {**self.options, **dict(zip(self.learned, fresh, strict=True))},
        )

    def outcome(self, end: dict[str, Tensor]) -> Tensor:
        return sum((self.view[name] * p.sin()).sum() for name, p in end.items())

    # The plain loop

    def torch_loop(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        data, theta, given = self.split([x.detach() for x in inputs])
        given = {k: float(v) if k in self.learned else v for k, v in given.items()}
        module, wrapped = copy.deepcopy(self.module), self.case.wrapped
        named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        for name, value in theta.items():
            named[name].data.copy_(value)
        optimizer, average, every = (
            self.optimizer(named, given),
            None,
            1 + ("accumulated" in wrapped),
        )
        for t, (images, labels, *weights) in enumerate(data):
            losses = F.cross_entropy(module(images), labels, reduction="none")
            (losses * weights[0] if weights else losses).mean().div(every).backward()
            if (t + 1) % every == 0:
                grads = [p.grad for p in named.values() if p.grad is not None]
                if self.case.rule == "Lion":  # the sign of round-off is anybody's
                    assume(not any(((g != 0) & (g.abs() < 1e-9)).any() for g in grads))
                self.clip([p for p in named.values() if p.grad is not None])
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                module.zero_grad(set_to_none=True)
            if t >= 1:
                average = self.averaged(average, named)
        end = average if "averaged" in wrapped and average is not None else named
        return {name: p.detach() for name, p in end.items()}

    def optimizer(self, named: dict[str, nn.Parameter], given: dict) -> Any:
        kind = Lion if self.case.rule == "Lion" else getattr(torch.optim, self.case.rule)
        given = dict(given)
        if {"beta1", "beta2"} & given.keys():
            default = getattr(ours, self.case.rule)()
            given["betas"] = tuple(given.pop(b, getattr(default, b)) for b in ("beta1", "beta2"))
        if "groups" not in self.case.wrapped:
            return kind(named.values(), **given)
        biases = [p for n, p in named.items() if n.endswith("bias")]
        rest = [
            p for n, p in named.items() if not n.endswith("bias") and not n.startswith("unused")
        ]
        return kind([{"params": biases, "lr": 0.5 * given["lr"]}, {"params": rest}], **given)

    def clip(self, params: list[nn.Parameter]) -> None:
        if "by value" in self.case.wrapped:
            clip_grad_value_(params, CLIP_VALUE)
        if "clipped" in self.case.wrapped:
            clip_grad_norm_(params, CLIP)

    def averaged(self, average: dict | None, named: dict) -> dict:
        now = {n: p.detach().clone() for n, p in named.items()}
        return (
            now
            if average is None
            else {n: EMA * average[n] + (1 - EMA) * p for n, p in now.items()}
        )

    # Ours

    def ours(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        data, theta, given = self.split(inputs)
        rule = getattr(ours, self.case.rule)(**given)
        slow = getattr(ours, self.case.rule)(**{**given, "lr": 0.5 * given["lr"]})
        rule = wrap(self.case, rule, slow)
        modes = {"adjoint": self.case.adjoint, "gradient": self.case.gradient}
        end = simulate(self.model.loss, theta, [tuple(b) for b in data], rule, **modes)
        return {n: p.dense() if hasattr(p, "dense") else p for n, p in end.items()}

    def slopes(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The end, the gradient's slope (or curvature) along ``along``, and its natural size."""
        case, at = self.case, [x.clone().requires_grad_() for x in self.at]
        if case.vmap == "inside":  # vmap over what autograd differentiates
            batched = [torch.stack([x, x + 0.1]) for x in at]
            ends = torch.func.vmap(self._run)(batched)
            end = {n: p[0] for n, p in ends.items()}
            return end, *self._slopes(self.outcome(end), at)
        if case.vmap == "outside":
            batched = [torch.stack([x, x + 0.1]).detach() for x in at]
            end, slope, size = torch.func.vmap(self._functional)(batched)
            return {n: p[0] for n, p in end.items()}, slope[0], size[0]
        end = self.ours(at)
        return end, *self._slopes(self.outcome(end), at)

    def _run(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        return self.ours(inputs)

    def _slopes(self, value: Tensor, at: list[Tensor]) -> tuple[Tensor, Tensor]:
        for k in range(self.case.order):
            more = k + 1 < self.case.order
            grads = torch.autograd.grad(
                value, at, create_graph=more, allow_unused=True, materialize_grads=True
            )
            value = _dot(grads, self.along)
        return value, _dot(grads, grads).sqrt()

    def _functional(self, inputs: list[Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        def slope(at: list[Tensor], order: int) -> Tensor:
            if order == 0:
                return self.outcome(self.ours(at))
            return _dot(torch.func.grad(slope)(at, order - 1), self.along)

        grads = torch.func.grad(slope)(inputs, self.case.order - 1)
        return self.ours(inputs), _dot(grads, self.along), _dot(grads, grads).sqrt()


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


FIRST = (4 / 5, -1 / 5, 4 / 105, -1 / 280)
SECOND = (8 / 5, -1 / 5, 8 / 315, -1 / 560)


def finite_difference(
    fn: Callable[[float], float], order: int, *, size: float
) -> tuple[float, float]:
    """The first or second derivative at 0 by central differences of eighth order, and how far the
    steps that agree best are apart.
    """
    found, best = [], (0.0, float("inf"))
    for h in (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6)[: 9 - 2 * order]:
        ups, downs = ([fn(s * k * h) for k in range(1, 5)] for s in (1, -1))
        if order == 1:
            found.append(sum(c * (u - d) for c, u, d in zip(FIRST, ups, downs, strict=True)) / h)
        else:
            around = sum(c * (u + d) for c, u, d in zip(SECOND, ups, downs, strict=True))
            found.append((around - 205 / 72 * fn(0.0)) / h**2)
        if len(found) > 1:
            best = min(best, (found[-1], abs(found[-1] - found[-2])), key=lambda f: f[1])
        if best[1] < 0.1 * TOLERANCE * size:
            break
    return best


def awaited(case: Case) -> bool:
    """Draws that are known to be wrong, until fused norms and RAdam are mended."""
    fused = {"layer norm", "batch norm", "instance norm", "encoder"} & set(case.body)
    if case.rule == "RAdam" and case.learned:
        return True
    return bool(fused) and (case.order, case.vmap) != (1, "no")


def check(case: Case) -> None:
    """Values and derivatives of a draw are those of the loop."""
    assume(not awaited(case))
    problem = Problem(case)
    expected = problem.torch_loop(problem.at)
    end, slope, size = problem.slopes()
    assert end.keys() == expected.keys()
    off, scale = (tree.norm(d) for d in (tree.sub(tree.detach(end), expected), expected))
    assert off <= TOLERANCE * scale, f"values off by {off / scale:.1e}"

    def at(step: float) -> float:
        moved = [x + step * d for x, d in zip(problem.at, problem.along, strict=True)]
        return problem.outcome(problem.torch_loop(moved)).item()

    found, scale = slope.item(), size.item()
    assert math.isfinite(found) and math.isfinite(scale)
    true, unsure = finite_difference(at, case.order, size=max(scale, 1e-30))
    assume(unsure <= 1e-5 * scale)  # a kink within reach: nothing to compare with
    off = abs(found - true)
    assert off <= TOLERANCE * scale + 10 * unsure, f"{found} is not {true}: {off / scale:.1e}"


def _run(draws: int, part: int, **options: Any) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    chosen = settings(max_examples=draws, deadline=None, suppress_health_check=quiet, **options)
    seed(part)(chosen(given(cases())(check)))()


@pytest.mark.parametrize("part", range(3))
def test_any_draw_is_the_torch_loop(part):
    _run(50, part, database=None)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3, 23))
def test_many_draws_are_the_torch_loop(part):
    _run(100, part, database=None)
