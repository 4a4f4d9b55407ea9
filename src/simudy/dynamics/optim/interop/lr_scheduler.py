"""Learning rates as a scheduler of torch sets them: read by stepping the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from simudy.dynamics.optim.hyperparameters import (
    hyperparameters,
    outermost,
    with_hyperparameters,
)
from simudy.dynamics.optim.rule import Rule, Scalar
from simudy.errors import SimudyError

Scheduler = Callable[[torch.optim.Optimizer], LRScheduler]


def stepped(rule: Rule, count: int, scheduler: Scheduler) -> list[Rule]:
    """``rule`` before each of ``count`` steps of a scheduler, the first of them untouched by any.

    Every learning rate inside the rule is a parameter group of its own. Where the scheduler moves
    momenta too (``OneCycleLR``, ``CyclicLR``), so does this.

    Args:
        scheduler: ``(optimizer) -> scheduler`` of ``torch.optim.lr_scheduler``.

    Raises:
        SimudyError: the scheduler decides by a metric, or cannot be made.

    Example:
        >>> from functools import partial
        >>> from torch.optim.lr_scheduler import StepLR
        >>> from simudy.dynamics.optim import SGD
        >>> [r.lr for r in stepped(SGD(lr=0.5), 4, partial(StepLR, step_size=2))]
        [0.5, 0.5, 0.05, 0.05]
    """
    held, homes = hyperparameters(rule), [path[:-2] for path in outermost(rule, "lr")]
    optimizer = _stand_in(held, homes)
    try:
        moving = scheduler(optimizer)
    except (TypeError, ValueError, AttributeError) as error:
        raise SimudyError(f"the learning-rate scheduler cannot be made: {error}") from error
    if isinstance(moving, ReduceLROnPlateau):
        raise SimudyError(
            "ReduceLROnPlateau decides by a metric, which no simulation knows: give the factors it "
            "came to as Recipe(schedule=…), one per step"
        )
    rules = []
    for _ in range(count):
        rules.append(with_hyperparameters(rule, _now(optimizer, held, homes)))
        optimizer.step()
        moving.step()
    return rules


def _stand_in(held: dict[str, Scalar], homes: list[str]) -> torch.optim.Optimizer:
    """An optimizer with the rule's learning rates and momenta, and nothing to move."""
    betas = any(f"{home}beta1" in held for home in homes)
    groups: list[dict[str, Any]] = []
    for home in homes:
        group: dict[str, Any] = {"params": [torch.zeros(())], "lr": _plain(held[f"{home}lr"])}
        if f"{home}momentum" in held and not betas:
            group["momentum"] = _plain(held[f"{home}momentum"])
        if f"{home}beta1" in held:
            group["betas"] = _plain(held[f"{home}beta1"]), 0.999
        groups.append(group)
    return torch.optim.Adam(groups) if betas else torch.optim.SGD(groups)


def _now(
    optimizer: torch.optim.Optimizer, held: dict[str, Scalar], homes: list[str]
) -> dict[str, Scalar]:
    """The hyper-parameters that the scheduler has a hand in, by path."""
    now: dict[str, Scalar] = {}
    for home, group in zip(homes, optimizer.param_groups, strict=True):
        values = {"lr": group["lr"], "momentum": group.get("momentum")}
        if "betas" in group:
            values["beta1"] = group["betas"][0]
        for name, value in values.items():
            if value is not None and f"{home}{name}" in held:
                now[f"{home}{name}"] = _set(held[f"{home}{name}"], float(value))
    return now


def _set(before: Scalar, value: float) -> Scalar:
    """``value``, as a multiple of ``before`` where that is learned."""
    return before * (value / _plain(before)) if isinstance(before, Tensor) else value


def _plain(value: Scalar) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value
