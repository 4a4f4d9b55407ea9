"""Recipes, rules and losses as plain data, for the json beside the weights.

What is read back may come from anybody: it may name the classes below, and nothing else.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from simudy.dynamics.augment import Augment
from simudy.dynamics.model.criterion import PerSample
from simudy.dynamics.optim import Started
from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError
from simudy.plain import misfit

_TORCH = {
    "torch.nn.modules.loss": nn.modules.loss._Loss,
    "torch.optim.lr_scheduler": LRScheduler,
}


def to_plain(value: Any, aside: dict[str, Tensor] | None = None) -> Any:
    """Dataclasses, torch losses and schedulers become ``{"_target_": "module.Class", …}``, small
    tensors numbers, tuples lists.

    Args:
        aside: takes up the moments that a rule begins with, too large for json, under a name of
            their own.

    Raises:
        SimudyError: a value has no plain form (a function, say).
    """
    if isinstance(value, Started) and value.states:
        if aside is None:
            raise SimudyError(
                "cannot write the moments that Started begins with to json: keep this evidence in "
                "memory, or give its recipe the rule without them (.rule)"
            )
        states = _stored(dict(value.states), aside)
        return {"_target_": _path(Started), "rule": to_plain(value.rule), "states": states}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (f.name for f in dataclasses.fields(value))
        held = {name: to_plain(getattr(value, name), aside) for name in names}
        return {"_target_": _path(type(value)), **held}
    if isinstance(value, nn.modules.loss._Loss):
        return {"_target_": _path(type(value)), **_arguments(value)}
    if isinstance(value, partial) and not value.args:
        return {"_target_": _path(value.func), "_partial_": True, **to_plain(value.keywords)}
    if isinstance(value, type) and issubclass(value, LRScheduler):
        return {"_target_": _path(value), "_partial_": True}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {_name(k): to_plain(v, aside) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v, aside) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        raise SimudyError(
            f"cannot write the function {getattr(value, '__name__', value)!r} to json: use numbers "
            "or a list of numbers in its place, or a dataclass derived from simudy.Augment"
        )
    raise SimudyError(
        f"cannot write {value!r} to json: use numbers or a list of numbers in its place"
    )


def _stored(value: Any, aside: dict[str, Tensor]) -> Any:
    """The state of a rule: tensors aside, named tuples by their class."""
    if isinstance(value, Tensor):
        aside[name := str(len(aside))] = value
        return {"_tensor_": name}
    if isinstance(value, dict):
        return {k: _stored(v, aside) for k, v in value.items()}
    if isinstance(value, tuple):
        held = {k: _stored(getattr(value, k), aside) for k in value._fields}  # type: ignore[attr-defined]
        return {"_target_": _path(type(value)), **held}
    return value


def from_plain(value: Any, aside: Mapping[str, Tensor] | None = None) -> Any:
    """The inverse of ``to_plain``. Nothing is imported that is not there already.

    Raises:
        SimudyError: a target is no rule, recipe, loss of ``torch.nn`` or torch scheduler, or its
            fields do not fit it.
    """
    if isinstance(value, list):
        return [from_plain(v, aside) for v in value]
    if not isinstance(value, dict):
        return value
    if (name := value.get("_tensor_")) is not None:
        if name not in (aside or {}):
            raise SimudyError("the moments beside the recipe are missing: save the evidence again")
        return aside[name]  # type: ignore[index]
    fields: dict[str, Any] = {
        k: from_plain(v, aside) for k, v in value.items() if k not in ("_target_", "_partial_")
    }
    if "_target_" not in value:
        return fields
    made = _allowed(value["_target_"])
    if issubclass(made, nn.modules.loss._Loss):
        fields = {
            k: torch.tensor(v, dtype=torch.float32) if isinstance(v, list) else v
            for k, v in fields.items()
        }
    _require_fitting(made, fields)
    try:
        return partial(made, **fields) if value.get("_partial_") else made(**fields)
    except TypeError as error:
        raise SimudyError(f"{value['_target_']} cannot be read back ({error})") from error


def read_recipe(value: Any, aside: Mapping[str, Tensor] | None = None) -> Recipe:
    """A recipe out of plain data, and the moments it begins with.

    Raises:
        SimudyError: the data makes something else, or see ``from_plain``.
    """
    found = from_plain(value, aside)
    if not isinstance(found, Recipe) or not isinstance(found.optimizer, Rule):
        raise SimudyError("evidence.json: recipe is none: give a folder that simudy wrote")
    return found


def _require_fitting(made: type, fields: dict[str, Any]) -> None:
    """Numbers within the ranges that the class declares."""
    if not dataclasses.is_dataclass(made):
        return
    hints = get_type_hints(made, include_extras=True)
    for name, value in fields.items():
        if isinstance(value, (int, float)) and (wrong := misfit(value, hints.get(name), name)):
            raise SimudyError(f"evidence.json: {wrong}")


def _allowed(path: Any) -> type:
    """The class that ``path`` names, if data may name it."""
    module, _, name = str(path).rpartition(".")
    made = getattr(sys.modules.get(module), name, None)
    if isinstance(made, type):
        if dataclasses.is_dataclass(made) and issubclass(made, (Rule, Recipe, PerSample, Augment)):
            return made
        if module.startswith("simudy.dynamics.optim.") and issubclass(made, tuple):
            return made  # the state of a rule
        if module in _TORCH and issubclass(made, _TORCH[module]):
            return made
    raise SimudyError(
        f"{path} is no rule, loss or schedule: a file may name those of simudy and "
        "torch, and what the call at hand names again, as Recipe(optimizer=…) or Recipe(augment=…)"
    )


def _path(made: Any) -> str:
    return f"{made.__module__}.{made.__qualname__}"


def _name(key: Any) -> str:
    if callable(key):
        raise SimudyError(
            "cannot write a rule whose groups are told by a function to json: name the parameters "
            "by a glob or a regular expression"
        )
    return f"re:{key.pattern}" if isinstance(key, re.Pattern) else str(key)


def _arguments(loss: nn.Module) -> dict[str, Any]:
    """What a loss was made with."""
    names = inspect.signature(type(loss)).parameters
    held = {k: getattr(loss, k) for k in names if getattr(loss, k, None) is not None}
    return {k: to_plain(v) for k, v in held.items()}
