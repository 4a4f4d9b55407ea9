"""Gradient accumulation over micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from simudy.dynamics import tree
from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.optim.wrapper import Wrapper
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


class State(NamedTuple):
    """Micro-batches gathered, the sum of their gradients, and the state of the rule inside."""

    gathered: int
    total: Params | None
    inner: Any


@dataclass
class Accumulated(Wrapper):
    """Average the gradient over ``every`` micro-batches, then take one step with ``rule``.

    One entry of ``batches`` is one micro-batch. θ stands still in between, and micro-batches left
    over at the end are dropped, as in the usual loop (``(loss / every).backward()``, a step every
    ``every`` times).

    Args:
        rule: the rule that uses the averaged gradient; put clipping inside to clip the average, as
            one does.
        every: micro-batches per step, at least 1.

    Example:
        >>> import torch
        >>> from simudy.dynamics.optim import SGD
        >>> rule, params = Accumulated(SGD(lr=1.0), every=2), {"w": torch.zeros(1)}
        >>> params, state = rule.update({"w": torch.tensor([1.0])}, rule.init(params), params)
        >>> rule.update({"w": torch.tensor([3.0])}, state, params)[0]["w"]
        tensor([-2.])
    """

    rule: Rule
    every: int = 2

    def __post_init__(self) -> None:
        if self.every < 1:
            raise SimudyError(
                f"Accumulated(every={self.every}): take a step every 1 or more micro-batches"
            )

    def init(self, params: Params) -> State:
        return State(0, None, self.rule.init(params))

    def update(self, grads: Params, state: State, params: Params) -> tuple[Params, State]:
        total = grads if state.total is None else tree.add(state.total, grads)
        if state.gathered + 1 < self.every:
            return params, State(state.gathered + 1, total, state.inner)
        params, inner = self.rule.update(tree.scale(1 / self.every, total), state.inner, params)
        return params, State(0, None, inner)

    def final(self, params: Params, state: State) -> Params:
        return self.rule.final(params, state.inner)
