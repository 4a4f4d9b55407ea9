"""The recipe, the attack and its outer loop out of their settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from simudy.app.settings.check import check, fits, locate, parameters
from simudy.app.settings.instantiate import build, build_partial, drop_nulls, fields_of
from simudy.app.settings.start import load_start
from simudy.attack.evidence import Evidence
from simudy.attack.methods.problem import Method
from simudy.attack.search import Outer
from simudy.dynamics.optim import Rule, scheduled, with_backend
from simudy.dynamics.optim.schedule import Schedule
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError

GUESSES = ("inner", "recipe")


def device(name: str) -> torch.device:
    """The device a setting names; ``auto`` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise SimudyError(f"device={name}: choose from auto, cpu, cuda") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise SimudyError(f"device={name}, but there is no usable GPU: set device=cpu")
    return found


def method(cfg: DictConfig, evidence: Evidence, *, labels: str | Tensor) -> Method:
    """The attack: its own options, and of the settings that attacks share, those it takes.

    Args:
        labels: how the dummies' labels begin (see ``labels.resolve_labels``).
    """
    fields = {k: v for k, v in fields_of(cfg.attack, "attack").items() if k not in GUESSES}
    takes = parameters(locate(fields["_target_"], "attack"))
    shared = _shared(cfg, guessed(cfg, evidence.recipe), evidence, labels)
    given = {k: v for k, v in shared.items() if k in takes and k not in fields}
    return build_partial(fields, "attack")(**given)


def outer(cfg: DictConfig) -> Outer:
    """The outer loop."""
    made = {
        k: build_partial(cfg.outer[k], f"outer.{k}")
        for k in ("optimizer", "schedule")
        if cfg.outer[k] is not None
    }
    plain: dict[str, Any] = OmegaConf.to_container(cfg.outer, resolve=True)  # type: ignore[assignment]
    numbers = {k: v for k, v in plain.items() if k not in ("optimizer", "schedule")}
    if not fits(lrs := numbers.pop("lrs") or {}, dict[str, float]) or not fits(
        [*lrs.values()], list[float]
    ):
        raise SimudyError(
            f"outer.lrs={lrs}: give a step size by variable, as in outer.lrs={{latent: 0.1}}"
        )
    return Outer(**numbers, lrs=lrs, **made)


def _shared(
    cfg: DictConfig, recipe: Recipe, evidence: Evidence, labels: str | Tensor
) -> dict[str, Any]:
    start, found = load_start(cfg, evidence)
    return {
        "distance": cfg.distance,
        "tv": cfg.prior.tv,
        "box": cfg.prior.box,
        "images": cfg.dummy.images,
        "decay": cfg.dummy.decay,
        "start": start,
        "labels": labels if found is None else found,
        "noise": cfg.dummy.noise,
        "learn": tuple(cfg.dummy.learn),
        "recipe": recipe,
        "adjoint": build(cfg.adjoint, "adjoint"),
        "gradient": build(cfg.gradient, "gradient"),
    }


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
        drop_nulls(OmegaConf.to_container(node, resolve=True)) if OmegaConf.is_config(node) else {}
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
