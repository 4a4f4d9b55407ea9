"""A rule around a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.tree import Params


@dataclass
class Wrapper(Rule):
    """Base of the rules that change what ``rule`` sees or returns. On its own it changes nothing.

    Args:
        rule: the rule inside; wrappers nest.
    """

    rule: Rule

    @property
    def spans_gradients(self) -> bool:  # type: ignore[override]
        return self.rule.spans_gradients

    def init(self, params: Params) -> Any:
        return self.rule.init(params)

    def update(self, grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        return self.rule.update(self.shaped(grads, params), state, params)

    def second_point(self, grads: Params, params: Params) -> Params | None:
        return self.rule.second_point(self.shaped(grads, params), params)

    def final(self, params: Params, state: Any) -> Params:
        return self.rule.final(params, state)

    def shaped(self, grads: Params, params: Params) -> Params:
        """The gradient that ``rule`` sees."""
        return grads
