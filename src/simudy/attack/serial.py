"""Recipes and rules as plain data, for the json beside the weights."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any

from torch import Tensor

from simudy.dynamics.optim import Started
from simudy.errors import SimudyError


def to_plain(value: Any) -> Any:
    """Dataclasses become ``{"_target_": "module.Class", …}``, scalar tensors numbers, tuples lists.

    Raises:
        SimudyError: a value has no plain form (a function, say).
    """
    if isinstance(value, Started) and value.states:
        raise SimudyError(
            "cannot write the moments that Started begins with to json: keep this evidence in "
            "memory, or give its recipe the rule without them (.rule)"
        )
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


def from_plain(value: Any) -> Any:
    """The inverse of ``to_plain``."""
    if isinstance(value, list):
        return [from_plain(v) for v in value]
    if not isinstance(value, dict):
        return value
    fields = {k: from_plain(v) for k, v in value.items() if k != "_target_"}
    if "_target_" not in value:
        return fields
    module, _, name = value["_target_"].rpartition(".")
    made = getattr(import_module(module), name, None)
    if not (
        isinstance(made, type) and dataclasses.is_dataclass(made)
    ):  # data may name a rule, not run any function
        raise SimudyError(f"{value['_target_']} is no rule: name a dataclass")
    return made(**fields)
