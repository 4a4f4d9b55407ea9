"""The plain training loop in torch that the property test compares with, and its derivatives by
finite differences.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from drawn import CLIP, CLIP_VALUE, EMA, PENALTY, RATIO, Case, rates
from hypothesis import assume
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import simudy.dynamics.optim as ours


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of arXiv:2302.06675, which torch lacks."""

    def __init__(self, params: Any, lr: float, betas: Any = (0.9, 0.99), weight_decay: float = 0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group, p in _with_gradient(self):
            lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
            assume(not ((p.grad != 0) & (p.grad.abs() < 1e-9)).any())  # a sign of round-off
            m = self.state[p].get("m", torch.zeros_like(p))
            p.sub_(lr * (torch.sign(beta1 * m + (1 - beta1) * p.grad) + decay * p))
            self.state[p]["m"] = beta2 * m + (1 - beta2) * p.grad


class Muon(torch.optim.Optimizer):
    """Muon by singular values, which is all that Newton–Schulz changes, in full precision; vectors
    take plain steps of 0.1 with decay.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        default = {"momentum": 0.95, "weight_decay": 0.1, "nesterov": True}
        super().__init__(params, {**default, **options})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group, p in _with_gradient(self):
            if p.ndim < 2:
                p.sub_(0.1 * (p.grad + 0.1 * p))
                continue
            mu, buffer = group["momentum"], self.state[p].get("b", torch.zeros_like(p))
            self.state[p]["b"] = buffer = mu * buffer + (1 - mu) * p.grad
            ahead = mu * buffer + (1 - mu) * p.grad if group["nesterov"] else buffer
            rows, columns = len(p), p[0].numel()
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(group["lr"] * max(1, rows / columns) ** 0.5 * _orthogonal(ahead))


def _orthogonal(matrix: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(matrix.flatten(1), full_matrices=False)
    assume(values.norm() > 1e-4)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values @ right).view_as(matrix)


def _with_gradient(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from ((group, p) for p in group["params"] if p.grad is not None)


def optimizer_of(case: Case, module: nn.Module, given: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of a draw, with fields ``given``; a slower group for biases."""
    kind = {"Lion": Lion, "Muon": Muon}.get(case.rule) or getattr(torch.optim, case.rule)
    given, named = dict(given), [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    if {"beta1", "beta2"} & given.keys():
        default = getattr(ours, case.rule)()
        given["betas"] = tuple(given.pop(b, getattr(default, b)) for b in ("beta1", "beta2"))
    if "groups" not in case.wrapped:
        return kind([p for _, p in named], **given)
    biases = [p for n, p in named if n.endswith("bias")]
    rest = [p for n, p in named if not n.endswith("bias") and not n.startswith("unused")]
    return kind([{"params": biases, "lr": 0.5 * given["lr"]}, {"params": rest}], **given)


def loss_of(case: Case, module: nn.Module, batch: list[Tensor]) -> Tensor:
    images, labels, *weights = batch
    losses = F.cross_entropy(module(images), labels, reduction="none")
    loss = (losses * weights[0] if weights else losses).mean()
    squares = [p.square().sum() for p in module.parameters() if p.requires_grad]
    return loss + PENALTY * sum(squares) if case.penalty else loss


def loop(
    case: Case, module: nn.Module, optimizer: torch.optim.Optimizer, data: list
) -> dict[str, Tensor]:
    """Train ``module`` in place; what it, or the average of its iterates, ends as."""
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    every, average = 1 + ("accumulated" in case.wrapped), None
    start = [group["lr"] for group in optimizer.param_groups]
    for t, (batch, rate) in enumerate(zip(data, rates(case), strict=True)):
        loss_of(case, module, batch).div(every).backward()
        if (t + 1) % every == 0:
            for group, lr in zip(optimizer.param_groups, start, strict=True):
                group["lr"] = rate * lr
            _clip(case, [p for p in named.values() if p.grad is not None])
            optimizer.step()
            module.zero_grad(set_to_none=True)
        if t >= 1:
            average = _averaged(average, named)
    end = average if "averaged" in case.wrapped and average is not None else named
    return {name: p.detach() for name, p in end.items()}


def _clip(case: Case, params: list[nn.Parameter]) -> None:
    """From the outside in, as ``drawn.wrap`` wraps."""
    if "by value" in case.wrapped:
        clip_grad_value_(params, CLIP_VALUE)
    if "clipped" in case.wrapped:
        clip_grad_norm_(params, CLIP)
    if "adaptively" in case.wrapped:  # arXiv:2102.06171, λ = RATIO, ε = 1e-3
        for p in params:
            assert p.grad is not None
            units = zip(p.grad, p, strict=True) if p.ndim > 1 else [(p.grad, p)]
            for unit, weights in units:
                most = RATIO * max(weights.norm().item(), 1e-3)
                unit.mul_(min(1.0, most / max(unit.norm().item(), 1e-300)))


def _averaged(average: dict | None, named: dict) -> dict:
    now = {n: p.detach().clone() for n, p in named.items()}
    if average is None:
        return now
    return {n: EMA * average[n] + (1 - EMA) * p for n, p in now.items()}


def started(case: Case, module: nn.Module, optimizer: Any, data: list) -> None:
    """Take the steps that a live optimizer has behind it, in place."""
    for t in range(case.live):
        loss_of(case, module, data[t % len(data)]).backward()
        optimizer.step()
        module.zero_grad(set_to_none=True)


def again(case: Case, module: nn.Module, optimizer: Any, given: dict) -> tuple[nn.Module, Any]:
    """Copies that may be trained: the optimizer has the fields ``given``, and the state it had."""
    module = copy.deepcopy(module)
    fresh = optimizer_of(case, module, given)
    if case.live:
        held = copy.deepcopy(optimizer.state_dict()["state"])  # load_state_dict would share it
        fresh.load_state_dict({**fresh.state_dict(), "state": held})
    return module, fresh


COEFFICIENTS = (4 / 5, -1 / 5, 4 / 105, -1 / 280)


def slope(fn: Callable[[float], float], *, enough: float) -> tuple[float, float]:
    """The derivative at 0 by central differences of eighth order, and how far off it may be: two
    steps disagree by so much, or rounding does it. No more steps once that is ``enough``.
    """
    found, best = [], (0.0, float("inf"))
    for h in (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6):
        ups, downs = ([fn(s * k * h) for k in range(1, 5)] for s in (1, -1))
        found.append(sum(c * (u - d) for c, u, d in zip(COEFFICIENTS, ups, downs, strict=True)) / h)
        if len(found) > 1:
            rounding = 4e-16 * max(abs(f) for f in ups + downs) / h
            off = max(abs(found[-1] - found[-2]), rounding)
            best = min(best, (found[-1], off), key=itemgetter(1))
        if best[1] < enough:
            break
    return best
