"""Different rules for different parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

Pattern = str | re.Pattern[str] | Callable[[str, Tensor], bool]


@dataclass
class Groups(Rule):
    """Give each parameter the rule of the first pattern that matches it; None freezes it.

    Args:
        rules: pattern to rule, in order. A string is a glob (``"*.bias"``); a compiled regex, or a
            string that begins with ``re:``, must match the whole name; a function of the name and
            the parameter, such as ``lambda name, p: p.ndim < 2``, is asked about both.

    Raises:
        SimudyError: a parameter matches no pattern, or a pattern (other than ``"*"``) gets no
            parameter.

    Example:
        >>> import torch
        >>> from simudy.dynamics.optim import SGD
        >>> rule = Groups({"*.bias": None, "head.*": SGD(lr=1.0), "*": SGD(lr=0.1)})
        >>> names = ("body.weight", "head.weight", "head.bias")
        >>> params, grads = ({k: x * torch.ones(1) for k in names} for x in (0.0, 1.0))
        >>> new, _ = rule.update(grads, rule.init(params), params)
        >>> {name: round(p.item(), 1) for name, p in new.items()}
        {'body.weight': -0.1, 'head.weight': -1.0, 'head.bias': 0.0}
    """

    rules: Mapping[Pattern, Rule | None]

    @property
    def spans_gradients(self) -> bool:  # type: ignore[override]
        return all(rule.spans_gradients for rule in self.rules.values() if rule is not None)

    def init(self, params: Params) -> dict[Pattern, Any]:
        groups = self._groups(params)
        unused = [p for p in self.rules if p not in groups and p != "*"]
        if unused:
            raise SimudyError(
                f"no parameter is left for the pattern {_text(unused)}: correct, drop or move it up"
            )
        return {p: rule.init(group) for p, rule, group in self._active(params)}

    def update(
        self, grads: Params, state: dict[Pattern, Any], params: Params
    ) -> tuple[Params, dict[Pattern, Any]]:
        new, states = dict(params), {}
        for p, rule, group in self._active(params):
            theirs = {name: grads[name] for name in group if name in grads}
            moved, states[p] = rule.update(theirs, state[p], group)
            new.update(moved)
        return new, states

    def second_point(self, grads: Params, params: Params) -> Params | None:
        found: Params = {}
        for _, rule, group in self._active(params):
            theirs = {name: grads[name] for name in group if name in grads}
            found.update((rule.second_point(theirs, group) if theirs else None) or {})
        return {**params, **found} if found else None

    def final(self, params: Params, state: dict[Pattern, Any]) -> Params:
        new = dict(params)
        for p, rule, group in self._active(params):
            new.update(rule.final(group, state[p]))
        return new

    def _active(self, params: Params) -> list[tuple[Pattern, Rule, Params]]:
        """The groups that move."""
        return [
            (p, rule, group)
            for p, group in self._groups(params).items()
            if (rule := self.rules[p]) is not None
        ]

    def _groups(self, params: Params) -> dict[Pattern, Params]:
        """The parameters of each pattern that has any."""
        groups: dict[Pattern, Params] = {}
        orphans = []
        for name, leaf in params.items():
            owner = next((p for p in self.rules if _matches(p, name, leaf)), None)
            orphans += [name] if owner is None else []
            groups.setdefault(owner or "", {})[name] = leaf
        if orphans:
            raise SimudyError(
                f'no pattern matches {_text(orphans)}: add one, or end with "*" (None freezes)'
            )
        return groups


def held_still(rule: Rule, params: Params) -> set[str]:
    """The parameters that a rule, or one that it wraps, freezes by name."""
    if isinstance(rule, Groups):
        return {
            name for p, names in rule._groups(params).items() if not rule.rules[p] for name in names
        }
    inner = getattr(rule, "rule", None)
    return held_still(inner, params) if isinstance(inner, Rule) else set()


def _matches(pattern: Pattern, name: str, leaf: Tensor) -> bool:
    if not isinstance(pattern, (str, re.Pattern)):
        return bool(pattern(name, leaf))
    if isinstance(pattern, str) and not pattern.startswith("re:"):
        return fnmatchcase(name, pattern)
    regex = pattern if isinstance(pattern, re.Pattern) else pattern.removeprefix("re:")
    return re.fullmatch(regex, name) is not None


def _text(names: list[Any]) -> str:
    return ", ".join(repr(getattr(n, "pattern", None) or getattr(n, "__name__", n)) for n in names)
