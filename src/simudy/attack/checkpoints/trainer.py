"""What a training script saved beside the weights: the state of its optimizer.

It is held against the recipe, and moments from before the run are taken into it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from simudy.dynamics.optim import Groups, Started, from_torch
from simudy.dynamics.optim.hyperparameters import innermost
from simudy.dynamics.optim.interop.lr_scheduler import stepped
from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError

_DEPTH = 4
_KINDS: tuple[type[torch.optim.Optimizer], ...] = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.Adamax, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta),
)
_WAYS = {"foreach", "fused", "capturable", "differentiable", "initial_lr", "params", "swa_lr"}


def saved_optimizers(loaded: Any, depth: int = _DEPTH) -> Iterator[Mapping[str, Any]]:
    """Every state dict of a torch optimizer in what a file held."""
    if isinstance(loaded, Mapping) and isinstance(loaded.get("param_groups"), list):
        yield loaded
    elif depth and isinstance(loaded, (Mapping, list)):
        for value in loaded.values() if isinstance(loaded, Mapping) else loaded:
            yield from saved_optimizers(value, depth - 1)


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
    states = _states(module, held[0])
    rule = innermost(lambda rule: Started(rule, states), recipe.optimizer)  # type: ignore[arg-type]
    return dataclasses.replace(recipe, optimizer=rule)


def _require_same(recipe: Recipe, saved: Mapping[str, Any], which: str) -> None:
    groups, rule = saved["param_groups"], _chain(recipe.optimizer)[-1]
    if len(groups) != 1 or isinstance(rule, Groups):
        return
    said, name = _options(groups[0]), type(rule).__name__
    kinds = [kind.__name__ for kind in _kinds(groups[0])]
    if kinds and name not in (*kinds, *(["AdamW"] if "Adam" in kinds else [])):
        raise SimudyError(
            f"the {which} file holds the state of {' or '.join(kinds)}, the recipe says {name}: "
            f"set Recipe(optimizer={kinds[0]})"
        )
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
                f"the {which} file's optimizer has {key}={value}, the recipe {_number(ours)}: set "
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
    plain = {k: v for k, v in group.items() if k not in _WAYS and k != "betas"}
    return {**plain, **betas}


def _kinds(group: Mapping[str, Any]) -> list[type[torch.optim.Optimizer]]:
    """The optimizers of torch whose groups have these settings."""
    held = group.keys() - _WAYS - {"param_names"}
    return [kind for kind in _KINDS if _settings(kind) == held]


def _settings(kind: type[torch.optim.Optimizer]) -> set[str]:
    return set(kind([torch.zeros(1)]).param_groups[0].keys()) - _WAYS  # type: ignore[call-arg]


def _states(module: nn.Module, saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Moments by the parameter's name; torch numbers them in the order they were handed over."""
    counts = [len(group["params"]) for group in saved["param_groups"]]
    named = list(module.named_parameters())
    trained = [(name, p) for name, p in named if p.requires_grad]
    fitting = [some for some in (named, trained) if [len(some)] == counts]
    kinds = _kinds(saved["param_groups"][0])
    if not fitting or not kinds:
        raise SimudyError(
            "the initial file holds moments whose parameters it does not name: give the rule with "
            "them from Python, from_torch(optimizer, module)"
        )
    ours = [(name, p.detach().clone().requires_grad_()) for name, p in fitting[0]]
    optimizer = kinds[0]([p for _, p in ours])  # type: ignore[call-arg]
    optimizer.load_state_dict(dict(saved))
    rule = from_torch(optimizer, ours)  # type: ignore[arg-type]
    states = getattr(rule, "states", {})
    return {k: state for k, state in states.items() if module.get_parameter(k).requires_grad}


def _chain(rule: Rule) -> list[Rule]:
    """A rule and what it wraps, outermost first."""
    inner = getattr(rule, "rule", None)
    return [rule, *(_chain(inner) if isinstance(inner, Rule) else [])]


def _equal(ours: Any, saved: Any) -> bool:
    return abs(_number(ours) - _number(saved)) <= 1e-6 * abs(_number(saved))


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
