"""The victim's recipe out of its settings, and the attacker's guess of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from simudy.app.build import build, without_nulls
from simudy.app.check import check
from simudy.dynamics.optim import Rule, scheduled, with_backend
from simudy.dynamics.optim.schedule import Schedule
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError

RECIPE = f"{Recipe.__module__}.Recipe"


def recipe(cfg: DictConfig) -> Recipe:
    """How the victim was trained."""
    said: dict[str, Any] = OmegaConf.to_container(cfg.recipe, resolve=True)  # type: ignore[assignment]
    schedule = _schedule(said.pop("schedule"))
    return Recipe(build(cfg.inner, "inner"), **said, seed=cfg.seed, schedule=schedule)


def guessed(cfg: DictConfig, known: Recipe) -> Recipe:
    """The recipe as the attack takes it to be: as known, but for what ``attack.inner`` and
    ``attack.recipe`` say.
    """
    said = _said(cfg, "attack.recipe")
    check({"_target_": RECIPE, **said}, "attack.recipe")
    if "schedule" in said:
        said["schedule"] = _schedule(said["schedule"])
    rule = with_backend(_guessed_rule(known.optimizer, _said(cfg, "attack.inner")), cfg.backend)
    return dataclasses.replace(known, optimizer=rule, **said)


def _guessed_rule(known: Rule, said: Mapping[str, Any]) -> Rule:
    """``known`` with other hyper-parameters (also those of a rule it wraps), or another rule
    altogether.
    """
    if "_target_" in said:
        return build(dict(said), "attack.inner")
    own = {field.name for field in dataclasses.fields(known)}  # type: ignore[arg-type]
    outer = {k: v for k, v in said.items() if k in own}
    check(
        {"_target_": f"{type(known).__module__}.{type(known).__qualname__}", **outer},
        "attack.inner",
    )
    if outer:
        known = dataclasses.replace(known, **outer)  # type: ignore[type-var]
    wrapped = {k: v for k, v in said.items() if k not in own}
    return scheduled(known, 1, **wrapped)[0] if wrapped else known


def _said(cfg: DictConfig, key: str) -> dict[str, Any]:
    node = OmegaConf.select(cfg, key)
    return (
        without_nulls(OmegaConf.to_container(node, resolve=True))
        if OmegaConf.is_config(node)
        else {}
    )


def _schedule(said: Any) -> Schedule | None:
    """Factors as a list, or from a node that makes a schedule (``simudy.dynamics.optim``), for its
    ``steps``.
    """
    if said is None or isinstance(said, (list, float, int)):
        return said
    made: Any = build(said, "recipe.schedule")
    if isinstance(made, (list, float, int)):
        return made
    if not isinstance(said.get("steps"), int):
        raise SimudyError(
            "recipe.schedule must be written out beside the weights: set recipe.schedule.steps"
        )
    return [float(made(step)) for step in range(said["steps"])]
