"""Learning rates as a scheduler of torch sets them: read by stepping the real one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from simudy.dynamics import tree
from simudy.dynamics.optim.hyperparameters import (
    hyperparameters,
    outermost,
    with_hyperparameters,
)
from simudy.dynamics.optim.interop.from_torch import rules_of
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
    _refuse_metric(moving)
    rules = []
    for _ in range(count):
        rules.append(with_hyperparameters(rule, _now(optimizer, held, homes)))
        optimizer.step()
        _step(moving)
    return rules


def _refuse_metric(scheduler: Any) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        raise SimudyError(
            "ReduceLROnPlateau decides by a metric, which no simulation knows: give the factors it "
            "came to as Recipe(schedule=…), one per step"
        )


def from_scheduler(
    scheduler: LRScheduler,
    named: nn.Module | Iterable[tuple[str, nn.Parameter]],
    steps: int,
    *,
    every: int = 1,
) -> list[Rule]:
    """The rules of the next ``steps`` steps of a live scheduler and its live optimizer, as they
    stand: ``from_torch`` of the optimizer, with the rates and momenta that the scheduler will set.

    Neither is moved. The first rule begins with the optimizer's moments and step counts. torch
    takes no rate that requires grad under a scheduler: to learn one, read the rates off the rules,
    ``scheduled(rules[0], steps, lr=[factor * rule.lr for rule in rules])``.

    Args:
        scheduler: any of ``torch.optim.lr_scheduler`` but ``ReduceLROnPlateau``, also chained or in
            sequence.
        named: the module it trains, or its named parameters.
        steps: how many rules to return.
        every: steps of the optimizer to one of the scheduler: the batches of an epoch, where that
            is stepped by epoch. The run begins right after a step of the scheduler.

    Raises:
        SimudyError: as ``from_torch``; or the scheduler decides by a metric.

    Example:
        >>> from torch.optim.lr_scheduler import StepLR
        >>> module = nn.Linear(2, 2)
        >>> scheduler = StepLR(torch.optim.SGD(module.parameters(), lr=0.5), step_size=2)
        >>> [rule.lr for rule in from_scheduler(scheduler, module, 4)]
        [0.5, 0.5, 0.05, 0.05]
    """
    _refuse_metric(scheduler)
    if every < 1:
        raise SimudyError(f"from_scheduler(every={every}): give 1 or more")
    groups, twin, times = scheduler.optimizer.param_groups, _twin(scheduler), []
    for t in range(steps):
        if t and t % every == 0:
            _step(twin)
        now = twin.optimizer.param_groups
        times.append([_as_now(*pair) for pair in zip(groups, now, strict=True)])
    return rules_of(scheduler.optimizer, named, times)


def _step(scheduler: Any) -> None:
    try:
        scheduler.step()
    except NotImplementedError as error:  # ChainedScheduler within SequentialLR
        raise SimudyError(
            f"torch itself cannot step this {type(scheduler).__name__}, one of whose parts has no "
            "rate to tell: make it of others"
        ) from error


def _twin(scheduler: Any) -> Any:
    """A copy of a scheduler, with an optimizer that has its settings and nothing to move."""
    optimizer: Any = torch.optim.SGD([torch.zeros(())])
    # Or the scheduler would warn of steps that it has not seen; nobody calls it.
    optimizer.step, optimizer._opt_called = scheduler.optimizer.step, True
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in scheduler.optimizer.param_groups
    ]
    rates = tree.leaves(groups)  # which several groups may share: torch writes into them
    memo: dict[int, Any] = {id(rate): rate.detach().clone() for rate in rates}
    optimizer.param_groups = copy.deepcopy(groups, memo)
    return copy.deepcopy(scheduler, {**memo, id(scheduler.optimizer): optimizer})


def _as_now(group: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A group's settings with what the scheduler has moved, be it a decay."""
    # Plain numbers: a scheduler writes into a rate that is a tensor.
    now = {key: _plain(value) for key, value in now.items()}
    moved = {key: value for key, value in now.items() if value != _plain(group.get(key))}
    return {**group, **moved}


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


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return float(value.detach()) if isinstance(value, Tensor) else value
