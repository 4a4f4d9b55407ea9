"""What a training script saved beside the weights: the state of its optimizer.

It is held against the recipe, and moments from before the run are taken into it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from simudy.attack.checkpoints.saved_optimizer import (
    WAYS,
    class_names,
    cycles_momentum,
    is_decoupled,
    rule_of,
    saved_optimizers,
)
from simudy.dynamics.optim import AdamW, Groups, Started
from simudy.dynamics.optim.hyperparameters import innermost
from simudy.dynamics.optim.interop.lr_scheduler import stepped
from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError


def with_moments(recipe: Recipe, module: nn.Module, initial: Any, final: Any) -> Recipe:
    """``recipe``, begun with the moments that the first file holds.

    Where the optimizer has one group of parameters, its settings must be the recipe's.

    Raises:
        SimudyError: a saved optimizer says something else than the recipe, or its moments cannot be
            told apart.
    """
    for which, loaded in (("initial", initial), ("final", final)):
        for saved in saved_optimizers(loaded):
            _require_same(recipe, saved, which)
    held = [saved for saved in saved_optimizers(initial) if saved.get("state")]
    if not held or any(isinstance(rule, Started) for rule in _chain(recipe.optimizer)):
        return recipe
    decoupled = isinstance(_chain(recipe.optimizer)[-1], AdamW)
    fresh, started = (
        rule_of(module, held[0], moments=moments, decoupled=decoupled) for moments in (False, True)
    )
    if fresh == recipe.optimizer:
        return dataclasses.replace(recipe, optimizer=started)
    states = _states(started)
    rule = innermost(lambda rule: Started(rule, states), recipe.optimizer)  # type: ignore[arg-type]
    return dataclasses.replace(recipe, optimizer=rule)


def _require_same(recipe: Recipe, saved: Mapping[str, Any], which: str) -> None:
    groups, rule = saved["param_groups"], _chain(recipe.optimizer)[-1]
    if isinstance(rule, Groups):
        return
    said, name = _options(groups[0]), type(rule).__name__
    fitting = class_names(groups[0])
    if fitting and name not in fitting:
        shown = fitting if is_decoupled(groups[0]) is None else fitting[:1]
        raise SimudyError(
            f"the {which} file holds the state of {' or '.join(shown)}, the recipe says {name}: "
            f"set Recipe(optimizer={fitting[0]})"
        )
    if len(groups) != 1:
        return
    moves = recipe.schedule is not None or recipe.scheduler is not None
    first = groups[0].get("initial_lr", None if moves else said.get("lr"))
    if not moves and "lr" in said and first != said["lr"]:
        raise SimudyError(
            f"the {which} file's learning rate had moved from {first} to {said['lr']}: set "
            "Recipe(scheduler=…), or Recipe(schedule=…), to what moved it"
        )
    now, said["lr"] = said.get("lr"), first
    for key, value in said.items():
        ours = getattr(rule, key, None)
        if value is not None and ours is not None and not _equal(ours, value):
            raise SimudyError(
                f"the {which} file's optimizer has {key}={value}, the recipe {_shown(ours)}: set "
                f"{type(rule).__name__}({key}={value})"
            )
    if which == "initial" and recipe.scheduler is not None and now is not None:
        _require_at_its_start(recipe, now)


def _require_at_its_start(recipe: Recipe, rate: float) -> None:
    begins = _chain(stepped(recipe.optimizer, 1, recipe.scheduler)[0])[-1].lr  # type: ignore
    if not _equal(begins, rate):
        raise SimudyError(
            f"the initial file's schedule was under way, at a rate of {rate}, where "
            f"Recipe(scheduler=…) begins at {_number(begins)}: give the factors of this part of "
            "the run as Recipe(schedule=…), one per batch"
        )


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    betas = dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))
    plain = {k: v for k, v in group.items() if k not in {*WAYS, "betas"}}
    moved = {"momentum", "beta1"} if cycles_momentum(group) else set()
    return {k: v for k, v in {**plain, **betas}.items() if k not in moved}


def _states(rule: Rule | None) -> dict[str, Any]:
    """Moments by the parameter's name, of a rule that has started."""
    if isinstance(rule, Groups):
        return {k: v for one in rule.rules.values() for k, v in _states(one).items()}
    return dict(rule.states) if isinstance(rule, Started) else {}


def _chain(rule: Rule) -> list[Rule]:
    """A rule and what it wraps, outermost first."""
    inner = getattr(rule, "rule", None)
    return [rule, *(_chain(inner) if isinstance(inner, Rule) else [])]


def _equal(ours: Any, saved: Any) -> bool:
    if isinstance(saved, (tuple, list)):
        return len(ours) == len(saved) and all(map(_equal, ours, saved))
    return abs(_number(ours) - _number(saved)) <= 1e-6 * abs(_number(saved))


def _shown(value: Any) -> Any:
    return value if isinstance(value, (tuple, list)) else _number(value)


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
