"""Hyper-parameters that change from step to step: one rule per step.

A *schedule* is a number, a callable ``step -> value`` (steps count from 0), a sequence of values,
or a 1-D tensor whose entry t goes to step t and receives its gradient. Base values may be tensors,
so a whole curve can be learned by its parameters: ``scheduled(rule, 10, lr=cosine_decay(lr, 10))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from simudy.dynamics.optim.hyperparameters import (
    outermost,
    scale_hyperparameters,
    with_hyperparameters,
)
from simudy.dynamics.optim.rule import Rule, Scalar
from simudy.errors import SimudyError

Schedule = Scalar | Sequence[Scalar] | Callable[[int], Scalar]


def scheduled(rule: Rule, steps: int, **schedules: Schedule) -> list[Rule]:
    """``rule``, once per step, with the named hyper-parameters set by their schedules.

    Names reach through wrappers: the outermost rules that have the field are set (in ``Groups``,
    all of them).

    Args:
        rule: what to set them in.
        steps: how many rules to return.
        schedules: values by field: a number, a callable of the step, a sequence or a tensor.

    Raises:
        SimudyError: no rule has the field, or a schedule has another length than ``steps``.

    Example:
        >>> from simudy.dynamics.optim import SGD, Clipped
        >>> [r.rule.lr for r in scheduled(Clipped(SGD()), 3, lr=[0.3, 0.2, 0.1])]
        [0.3, 0.2, 0.1]
    """
    paths = {name: outermost(rule, name) for name in schedules}
    _require_lengths(steps, schedules)
    return [
        with_hyperparameters(
            rule, {path: at(schedules[name], t) for name in paths for path in paths[name]}
        )
        for t in range(steps)
    ]


def scaled(rule: Rule, steps: int, **schedules: Schedule) -> list[Rule]:
    """As ``scheduled``, but multiplying what the rule holds: the groups of ``Groups`` keep their
    ratios.

    Args:
        rule: what to multiply in.
        steps: how many rules to return.
        schedules: factors by field: a number, a callable of the step, a sequence or a tensor.

    Example:
        >>> from simudy.dynamics.optim import SGD
        >>> [r.lr for r in scaled(SGD(lr=0.5), 3, lr=step_decay(1.0, every=1, factor=0.5))]
        [0.5, 0.25, 0.125]
    """
    _require_lengths(steps, schedules)
    return [
        scale_hyperparameters(rule, **{name: at(s, t) for name, s in schedules.items()})
        for t in range(steps)
    ]


def step_decay(base: Schedule, *, every: int, factor: Scalar) -> Callable[[int], Scalar]:
    """``base · factor^⌊t/every⌋``, as ``StepLR``.

    Args:
        base: the value at step 0, or a schedule to bend.
        every: steps between two drops.
        factor: of a drop.
    """
    return lambda t: at(base, t) * factor ** (t // every)


def cosine_decay(base: Schedule, steps: int, *, end: Scalar = 0.0) -> Callable[[int], Scalar]:
    """From ``base`` to ``end`` along half a cosine of ``steps`` steps, then ``end``, as
    ``CosineAnnealingLR``.

    Args:
        base: the value at step 0, or a schedule to bend.
        steps: how long the decay takes.
        end: the value from then on.
    """
    return lambda t: _cosine(at(base, t), end, min(t / steps, 1.0))


def warmup(then: Schedule, steps: int, *, start: Scalar | None = None) -> Callable[[int], Scalar]:
    """Climb linearly from ``start · then(0)`` for ``steps`` steps, then follow ``then`` from its
    beginning.

    As ``LinearLR`` followed by another scheduler in ``SequentialLR``.

    Args:
        then: the schedule after the climb.
        steps: of the climb.
        start: fraction at step 0. Default: 1/steps, so that no step is lost.
    """
    first = 1 / max(steps, 1) if start is None else start
    return lambda t: (
        at(then, t - steps) if t >= steps else at(then, 0) * (first + (1 - first) * t / steps)
    )


def one_cycle(
    peak: Scalar, steps: int, *, rise: float = 0.3, start: Scalar = 1 / 25, end: Scalar = 1e-4
) -> Callable[[int], Scalar]:
    """Up from ``start·peak`` and down to ``start·end·peak`` along half cosines, as ``OneCycleLR``.

    Args:
        peak: the highest value.
        steps: of the whole cycle.
        rise: fraction of the steps that climb.
        start: first value over ``peak`` (1/``div_factor``).
        end: last over first value (1/``final_div_factor``).
    """
    top = rise * steps - 1  # the step of the peak; a fraction, as in torch

    def value(t: int) -> Scalar:
        if t <= top:
            return _cosine(peak * start, peak, t / top)
        return _cosine(peak, peak * start * end, (t - top) / (steps - 1 - top))

    return value


def at(schedule: Schedule, step: int) -> Scalar:
    """The value of a schedule at a step."""
    if callable(schedule):
        return schedule(step)
    if isinstance(schedule, (int, float)) or (isinstance(schedule, Tensor) and schedule.ndim == 0):
        return schedule
    return schedule[step]


def _cosine(first: Scalar, last: Scalar, fraction: float) -> Scalar:
    return last + (first - last) * (1 + math.cos(math.pi * fraction)) / 2


def _require_lengths(steps: int, schedules: dict[str, Schedule]) -> None:
    for name, schedule in schedules.items():
        _require_length(name, schedule, steps)


def _require_length(name: str, schedule: Any, steps: int) -> None:
    single = (
        callable(schedule)
        or isinstance(schedule, (int, float))
        or getattr(schedule, "ndim", 1) == 0
    )
    length = steps if single else len(schedule)  # type: ignore[arg-type]
    if length != steps:
        raise SimudyError(
            f"the schedule of {name!r} has {length} values for {steps} steps: give one per step"
        )
