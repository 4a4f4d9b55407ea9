"""A rule around a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

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


class State(NamedTuple):
    """Steps taken, and the state of the rule inside."""

    step: int
    inner: Any


@dataclass
class Numbered(Wrapper):
    """Base of the wrappers whose gradient depends on the number of the step.

    Args:
        rule: the rule inside.
    """

    def init(self, params: Params) -> State:
        return State(0, self.rule.init(params))

    def update(self, grads: Params, state: State, params: Params) -> tuple[Params, State]:
        seen = self.shaped_at(state.step, grads, params)
        params, inner = self.rule.update(seen, state.inner, params)
        return params, State(state.step + 1, inner)

    def final(self, params: Params, state: State) -> Params:
        return self.rule.final(params, state.inner)

    def shaped_at(self, step: int, grads: Params, params: Params) -> Params:
        """The gradient that ``rule`` sees at this step, counted from 0."""
        raise NotImplementedError
