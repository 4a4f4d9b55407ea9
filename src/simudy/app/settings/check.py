"""Does a node with a ``_target_`` say only what its target understands? Names and types, before
anything runs.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import logging
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object

from simudy.errors import SimudyError
from simudy.plain import misfit

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # `locate` says the same in a line
RESERVED = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


def check(node: Mapping[str, Any], where: str) -> None:
    """Every field of ``node``, and of the nodes inside it, against the target's signature and
    annotations.

    Args:
        node: plain data.
        where: the key it stands under, for the message.

    Raises:
        SimudyError: the target cannot be imported, takes no such field, or a value is of the wrong
            type or out of its range.
    """
    target = locate(node["_target_"], where)
    accepted = parameters(target)
    for key, value in node.items():
        if key in RESERVED:
            continue
        if key not in accepted and not _takes_any(target):
            raise SimudyError(
                f"{where}.{key}: {node['_target_']} takes no {key!r}{suggestion(key, accepted)}"
            )
        if _has_nodes(value):
            _check_inside(value, f"{where}.{key}")
        elif wrong := misfit(value, accepted.get(key, Any), f"{where}.{key}"):
            raise SimudyError(wrong)


def _has_nodes(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(_has_nodes(v) for v in value.values())
    return isinstance(value, list) and any(_has_nodes(v) for v in value)


def _check_inside(value: Any, where: str) -> None:
    if isinstance(value, Mapping) and "_target_" in value:
        check(value, where)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_inside(item, f"{where}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_inside(item, f"{where}.{i}")


def locate(path: Any, where: str) -> Callable[..., Any]:
    """The class or function that a ``_target_`` names."""
    try:
        target = get_object(str(path))
    except (ImportError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SimudyError(
            f"{where}._target_={path}: cannot import it ({reason}): give package.module.Name"
        ) from error
    except InstantiationException as error:
        raise SimudyError(
            f"{where}._target_={path}: cannot import it: give package.module.Name"
        ) from error
    if not callable(target):
        raise SimudyError(
            f"{where}._target_={path} is no class or function: give package.module.Name"
        )
    return target


def parameters(target: Callable[..., Any]) -> dict[str, Any]:
    """The names a target takes, and what their annotations, or else their defaults, say of their
    types.
    """
    hints, named = (
        _hints(target),
        [p for p in _signature(target) if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)],
    )
    return {p.name: hints.get(p.name, _by_default(p.default)) for p in named}


def suggestion(key: str, known: Iterable[str]) -> str:
    """``: did you mean …`` for a misspelt key, or what there is."""
    known = [str(k) for k in known if k not in RESERVED]
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    return (
        f": did you mean {' or '.join(near)}?"
        if near
        else f": choose from {', '.join(known) or 'nothing'}"
    )


def _signature(target: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # written in C
        return []


def _takes_any(target: Callable[..., Any]) -> bool:
    signature = _signature(target)
    return not signature or any(p.kind is p.VAR_KEYWORD for p in signature)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    of = (
        target.__init__
        if isinstance(target, type) and not dataclasses.is_dataclass(target)
        else target
    )
    try:
        return typing.get_type_hints(of, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that exist for a type checker alone
        return {}


def _by_default(default: Any) -> Any:
    """What an argument without annotation takes, as far as its default tells."""
    return (
        float
        if type(default) in (int, float)
        else type(default)
        if type(default) in (bool, str)
        else Any
    )
