"""Lookahead: k steps forward, one step back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from simudy.dynamics import tree
from simudy.dynamics.optim.rule import Rate, Rule
from simudy.dynamics.optim.wrapper import Wrapper
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


class State(NamedTuple):
    """Steps since the slow weights moved, the slow weights, and the state of the rule inside."""

    taken: int
    slow: Params
    inner: Any


@dataclass
class Lookahead(Wrapper):
    """Take ``every`` steps with ``rule``, then go back to a point on the way there, and go on from
    it.

    φ ← φ + α(θ − φ), θ ← φ after each ``every`` steps. The state of the rule stays as it is. The
    run returns θ, which is φ where the number of steps is a multiple of ``every``.

    Args:
        rule: the rule that takes the steps.
        alpha: α.
        every: steps before one back, at least 1.

    Raises:
        SimudyError: ``every`` is below 1.

    Reference: Zhang et al., Lookahead optimizer: k steps forward, 1 step back, arXiv:1907.08610.

    Example:
        >>> import torch
        >>> from simudy.dynamics.optim import SGD
        >>> rule, params = Lookahead(SGD(lr=1.0), every=1), {"w": torch.zeros(1)}
        >>> rule.update({"w": torch.ones(1)}, rule.init(params), params)[0]["w"]
        tensor([-0.5000])
    """

    rule: Rule
    alpha: Rate = 0.5
    every: int = 5

    def __post_init__(self) -> None:
        if self.every < 1:
            raise SimudyError(f"Lookahead(every={self.every}): look back every 1 or more steps")

    def init(self, params: Params) -> State:
        return State(0, params, self.rule.init(params))

    def update(self, grads: Params, state: State, params: Params) -> tuple[Params, State]:
        params, inner = self.rule.update(grads, state.inner, params)
        if state.taken + 1 < self.every:
            return params, State(state.taken + 1, state.slow, inner)
        way = tree.scale(self.alpha, tree.sub(params, state.slow))
        slow = tree.add(state.slow, way)
        return slow, State(0, slow, inner)

    def final(self, params: Params, state: State) -> Params:
        return self.rule.final(params, state.inner)
