"""Whether a state is one that a rule can go on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


def checked_state(rule: Rule, state: Any, params: Params) -> Any:
    """``state``, where ``rule`` can go on from it.

    Args:
        rule: the rule of the next step.
        state: as ``rule.update`` returns it, or as ``simulate`` does.
        params: what it moves, by name.

    Raises:
        SimudyError: the state is of another rule or of other parameters.
    """
    for name, problem in _misfits(state, rule.init(params), params, ""):
        where = f" of {name!r}" if name else ""
        raise SimudyError(
            f"the state{where} {problem}: give {type(rule).__name__} the state that this rule "
            "returned for these parameters"
        )
    return state


def _misfits(state: Any, fresh: Any, params: Params, name: str) -> Iterator[tuple[str, str]]:
    """Where a state has another form than the one that the rule begins with, and how."""
    if fresh is None:  # what is not there before the first step may be anything of the right shape
        yield from _misshapen(state, params, name)
    elif isinstance(fresh, Mapping):
        if not isinstance(state, Mapping):
            yield name, f"is a {type(state).__name__}, no dict"
        else:
            yield from ((str(key), "is missing") for key in fresh.keys() - state.keys())
            if fresh:
                yield from (
                    (str(key), "is of no parameter or group here")
                    for key in state.keys() - fresh.keys()
                )
            for key, part in fresh.items():
                yield from _misfits(state[key], part, params, key if key in params else name)
    elif isinstance(fresh, (list, tuple)):
        if type(state) is not type(fresh) or len(state) != len(fresh):
            yield name, f"is a {type(state).__name__}, no {type(fresh).__name__}"
        else:
            for part, begun in zip(state, fresh, strict=True):
                yield from _misfits(part, begun, params, name)
    elif isinstance(fresh, Tensor) and (
        not isinstance(state, Tensor) or state.shape != fresh.shape
    ):
        yield name, f"has shape {_shape(state)}, where {_shape(fresh)} is due"


def _misshapen(state: Any, params: Params, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(state, Mapping):
        for key, part in state.items():
            yield from _misshapen(part, params, key)
    elif isinstance(state, Tensor) and name in params and state.shape != params[name].shape:
        yield name, f"has shape {_shape(state)}, where {_shape(params[name])} is due"


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"no shape, but {value!r}"
