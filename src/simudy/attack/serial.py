"""Recipes and rules as plain data, for the json beside the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, get_type_hints

from torch import Tensor

from simudy.dynamics.optim import Rule
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError
from simudy.plain import misfit
from simudy.trust import require_trusted


def to_plain(value: Any) -> Any:
    """Dataclasses become ``{"_target_": "module.Class", …}``, scalar tensors numbers, tuples lists.

    Raises:
        SimudyError: a value has no plain form (a function, say).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"_target_": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise SimudyError(
        f"cannot write {value!r} to json: use numbers or a list of numbers in its place"
    )


def from_plain(value: Any, *, trusted: Collection[str] = ()) -> Any:
    """The inverse of ``to_plain``.

    Args:
        trusted: dotted names of dataclasses, beside simudy's own, that the data may have imported.

    Raises:
        SimudyError: it names another class, or fields that the class does not take.
    """
    if isinstance(value, list):
        return [from_plain(v, trusted=trusted) for v in value]
    if not isinstance(value, dict):
        return value
    fields = {k: from_plain(v, trusted=trusted) for k, v in value.items() if k != "_target_"}
    if "_target_" not in value:
        return fields
    name = value["_target_"]
    made = require_trusted(name, "evidence.json", "inner._target_", named=trusted)
    if not (isinstance(made, type) and dataclasses.is_dataclass(made)):
        raise SimudyError(f"evidence.json: {name} is no rule: name a dataclass")
    hints = get_type_hints(made, include_extras=True)
    wrong = (misfit(v, hints.get(k, Any), f"evidence.json: {k}") for k, v in fields.items())
    if found := next(filter(None, wrong), None):
        raise SimudyError(found)
    try:
        return made(**fields)
    except TypeError as error:
        raise SimudyError(f"evidence.json: {name} cannot be made of it ({error})") from error


def read_recipe(value: Any, *, trusted: Collection[str] = ()) -> Recipe:
    """A recipe out of plain data.

    Raises:
        SimudyError: the data makes something else, or see ``from_plain``.
    """
    found = from_plain(value, trusted=trusted)
    if not isinstance(found, Recipe) or not isinstance(found.optimizer, Rule):
        raise SimudyError("evidence.json: recipe is none: give a folder that simudy wrote")
    return found
