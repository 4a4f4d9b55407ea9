"""The numbers inside a rule, through all its wrappers: read them, replace them, swap the rules at
the bottom.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from simudy.dynamics.optim.rule import Rule, Scalar
from simudy.errors import SimudyError


def hyperparameters(rule: Rule) -> dict[str, Scalar]:
    """Every hyper-parameter that is a float or a tensor, by its path (names joined by ``/``).

    Args:
        rule: the rule; those it wraps are looked into.

    Example:
        >>> from simudy.dynamics.optim import Adadelta, ClippedByValue
        >>> list(hyperparameters(ClippedByValue(Adadelta(), max_value=2.0)))
        ['rule/lr', 'rule/rho', 'rule/eps', 'rule/weight_decay', 'max_value']
    """
    found: dict[str, Any] = {}
    _map(lambda path, value: found.setdefault(path, value), rule)
    return {path: value for path, value in found.items() if isinstance(value, (float, Tensor))}


def with_hyperparameters(rule: Any, new: Mapping[str, Any]) -> Any:
    """A copy of ``rule`` with the hyper-parameters at these paths replaced.

    Args:
        rule: the rule, which stays as it is.
        new: values by path, as ``hyperparameters`` names them.

    Example:
        >>> from simudy.dynamics.optim import SGD, Clipped
        >>> with_hyperparameters(Clipped(SGD(lr=0.1)), {"rule/lr": 0.2}).rule.lr
        0.2
    """
    return _map(lambda path, value: new.get(path, value), rule)


def scale_hyperparameters(rule: Rule, **factors: Scalar) -> Rule:
    """A copy of ``rule`` with the named hyper-parameters multiplied, each in the outermost rules.

    Args:
        rule: the rule, which stays as it is.
        factors: by field.

    Raises:
        SimudyError: no rule inside has a field of this name.

    Example:
        >>> from simudy.dynamics.optim import SGD, Clipped
        >>> scale_hyperparameters(Clipped(SGD(lr=0.5)), lr=0.5).rule.lr
        0.25
    """
    held = hyperparameters(rule)
    scaled = {
        path: held[path] * factor
        for name, factor in factors.items()
        for path in outermost(rule, name)
    }
    return with_hyperparameters(rule, scaled)


def outermost(rule: Rule, name: str) -> list[str]:
    """The paths of the field ``name``, in each branch that of the outermost rule which has it.

    Raises:
        SimudyError: no rule inside has it.
    """
    held = hyperparameters(rule)
    homes = {path: path[: -len(name)] for path in held if path.split("/")[-1] == name}
    if not homes:
        raise SimudyError(f"no number called {name!r}; this rule has {', '.join(held)}")
    return [
        path
        for path, home in homes.items()
        if not any(path.startswith(other) for other in homes.values() if other != home)
    ]


def innermost(fn: Callable[[Rule], Any], node: Any) -> Any:
    """A copy of a rule with ``fn`` applied to the rules that wrap no other."""
    if isinstance(node, Rule):
        new = {name: innermost(fn, child) for name, child in _children(node).items()}
        wraps = any(new[name] is not child for name, child in _children(node).items())
        return replace(node, **new) if wraps else fn(node)  # type: ignore[type-var]
    if isinstance(node, Mapping) and any(isinstance(child, Rule) for child in node.values()):
        return {key: innermost(fn, child) for key, child in node.items()}
    return node


def _map(fn: Callable[[str, Any], Any], node: Any, path: str = "") -> Any:
    """A copy of a nest of rules with ``fn(path, leaf)`` in place of each leaf."""
    new = {
        name: _map(fn, child, f"{path}/{name}".lstrip("/"))
        for name, child in _children(node).items()
    }
    if is_dataclass(node):
        return replace(node, **new)  # type: ignore[type-var]
    if isinstance(node, Mapping):
        return dict(zip(node, new.values(), strict=True))
    return type(node)(new.values()) if isinstance(node, (list, tuple)) else fn(path, node)


def _children(node: Any) -> dict[str, Any]:
    if isinstance(node, Rule) and is_dataclass(node):
        return {
            field.name: _number(getattr(node, field.name), field.type)
            for field in fields(node)
            if field.metadata.get("hyperparameters", True)  # what Started starts from is none
        }
    if isinstance(node, Mapping):
        return {_key(key, place): child for place, (key, child) in enumerate(node.items())}
    return (
        {str(i): child for i, child in enumerate(node)} if isinstance(node, (list, tuple)) else {}
    )


def _key(key: Any, place: int) -> str:
    """A name for what stands before a rule in a mapping: functions may share theirs."""
    if isinstance(key, re.Pattern):
        return key.pattern
    return f"{key.__name__}:{place}" if inspect.isroutine(key) else str(key)


def _number(value: Any, annotation: Any) -> Any:
    """``lr=1`` is the number 1.0; an int in an ``int`` field (``every=1``) is a count."""
    return float(value) if type(value) is int and annotation not in (int, "int") else value
