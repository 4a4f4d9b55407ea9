"""The state dict of a torch learning-rate scheduler, as the call that made it: its class told by
what it keeps, and proven by stepping the real one to the rate that was saved.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch.optim import lr_scheduler

from simudy.attack.checkpoints.saved_optimizer import states_in
from simudy.dynamics.optim import SGD
from simudy.dynamics.optim.hyperparameters import hyperparameters
from simudy.dynamics.optim.interop.lr_scheduler import Scheduler, stepped
from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError

_KINDS: tuple[type[lr_scheduler.LRScheduler], ...] = (
    *(lr_scheduler.StepLR, lr_scheduler.MultiStepLR, lr_scheduler.ExponentialLR),
    *(lr_scheduler.CosineAnnealingLR, lr_scheduler.CosineAnnealingWarmRestarts),
    *(lr_scheduler.LinearLR, lr_scheduler.ConstantLR, lr_scheduler.PolynomialLR),
)
_ALWAYS = {"base_lrs", "last_epoch", "verbose", "_step_count", "_last_lr", "_is_initial"}
_ALWAYS |= {"_get_lr_called_within_step", "T_i", "T_cur"}
_OPEN = {"optimizer", "last_epoch", "verbose"}


def saved_schedulers(loaded: Any) -> Iterator[Mapping[str, Any]]:
    """Every state dict of a torch scheduler in what a file held."""
    return states_in(loaded, lambda held: {"last_epoch", "_last_lr"} <= held.keys())


def scheduler_of(saved: Mapping[str, Any]) -> Scheduler:
    """``(optimizer) -> scheduler`` as the script made it.

    Raises:
        SimudyError: its class cannot be told, or its rates are not those it should have come to.
    """
    own = saved.keys() - _ALWAYS
    made = next((kind for kind in _KINDS if _arguments(kind) == own), None)
    if made is None or not saved.get("base_lrs"):
        what = ", ".join(sorted(own)[:4]) or "its rates alone"
        raise SimudyError(
            f"the files hold a scheduler's state ({what}) that does not tell how it was made: set "
            "Recipe(scheduler=…), or Recipe(schedule=…) to the factors it came to"
        )
    given = {key: _plain(saved[key]) for key in sorted(own)}
    scheduler = partial(made, **given)
    rates = rates_of(scheduler, base=saved["base_lrs"][0], count=int(saved["last_epoch"]) + 1)
    if abs(rates[-1] - saved["_last_lr"][0]) > 1e-6 * abs(saved["base_lrs"][0]):
        raise SimudyError(
            f"the files' {made.__name__} stands at a rate of {saved['_last_lr'][0]}, where it "
            f"would have come to {rates[-1]}: something else moved it, so give the factors as "
            "Recipe(schedule=…)"
        )
    return scheduler


def rates_of(scheduler: Scheduler, *, base: float, count: int) -> list[float]:
    """The first ``count`` learning rates."""
    return [float(rule.lr) for rule in stepped(SGD(lr=base), count, scheduler)]  # type: ignore


def told(scheduler: Scheduler) -> str:
    """``StepLR with gamma 0.5, step_size 2``."""
    if not isinstance(scheduler, partial):
        return str(getattr(scheduler, "__name__", scheduler))
    options = ", ".join(f"{key} {value}" for key, value in scheduler.keywords.items())
    return f"{scheduler.func.__name__} with {options}"  # type: ignore[attr-defined]


def written_out(recipe: Recipe, n: int | None) -> Recipe:
    """``recipe`` with factors in place of a scheduler that is no class of torch, whose name alone
    would not bring it back.

    Raises:
        SimudyError: the number of images is unknown, or rates move apart.
    """
    made = recipe.scheduler
    kind = made.func if isinstance(made, partial) else made
    if kind is None or getattr(lr_scheduler, getattr(kind, "__name__", ""), None) is kind:
        return recipe
    if n is None:
        raise SimudyError(
            "a scheduler of your own is saved as the factors it comes to, one a batch: set "
            "Evidence(n=…), or Recipe(schedule=…) to these"
        )
    still = dataclasses.replace(recipe, scheduler=None).rules(n)[0]
    moved, found = recipe.rules(n), {}
    for name in ("lr", "momentum", "beta1"):
        if factors := _factors(name, still, moved):
            found[name] = factors
    return dataclasses.replace(recipe, scheduler=None, schedule=found or None)


def _factors(name: str, still: Rule, moved: list[Rule]) -> list[float]:
    """Of a hyper-parameter by batch; none where it rests or no rule has it."""
    before = {path: float(v) for path, v in hyperparameters(still).items()}
    paths = [path for path, v in before.items() if path.split("/")[-1] == name and v]
    curves = [
        [float(hyperparameters(rule)[path]) / before[path] for rule in moved] for path in paths
    ]
    if any(curve != curves[0] for curve in curves):
        raise SimudyError(
            f"the scheduler moves {name} otherwise in one group than in another, which no factors "
            "say: use a class of torch.optim.lr_scheduler"
        )
    return curves[0] if curves and any(factor != 1 for factor in curves[0]) else []


def _arguments(kind: type) -> set[str]:
    return set(inspect.signature(kind).parameters) - _OPEN


def _plain(value: Any) -> Any:
    return sorted(value.elements()) if isinstance(value, Counter) else value
