"""Weight averaging: the run publishes an average of its iterates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from simudy.dynamics import tree
from simudy.dynamics.optim.moments import ema
from simudy.dynamics.optim.rule import Decay, Rule
from simudy.dynamics.optim.wrapper import Wrapper
from simudy.dynamics.tree import Params


class State(NamedTuple):
    """Steps taken, the average so far, and the state of the rule inside."""

    step: int
    average: Params | None
    inner: Any


@dataclass
class Averaged(Wrapper):
    """Train with ``rule`` and return an average of the iterates: exponential (EMA), or uniform
    (SWA).

    a ← δa + (1−δ)θ, or the plain mean; the first iterate averaged starts it. As
    ``torch.optim.swa_utils.AveragedModel`` updated after each step.

    Args:
        rule: the rule that trains; it never sees the average.
        decay: δ of the EMA; None for the uniform mean.
        start: steps before averaging begins.

    Reference: Polyak & Juditsky, 1992; Izmailov et al., arXiv:1803.05407 (SWA).

    Example:
        >>> import torch
        >>> from simudy.dynamics.optim import SGD
        >>> rule, params = Averaged(SGD(lr=1.0), decay=None), {"w": torch.zeros(1)}
        >>> state = rule.init(params)
        >>> for _ in range(2):
        ...     params, state = rule.update({"w": torch.ones(1)}, state, params)
        >>> params["w"], rule.final(params, state)["w"]
        (tensor([-2.]), tensor([-1.5000]))
    """

    rule: Rule
    decay: Decay | None = 0.999
    start: int = 0

    def init(self, params: Params) -> State:
        return State(0, None, self.rule.init(params))

    def update(self, grads: Params, state: State, params: Params) -> tuple[Params, State]:
        params, inner = self.rule.update(grads, state.inner, params)
        seen = state.step - self.start
        if seen < 0:
            return params, State(state.step + 1, None, inner)
        return params, State(state.step + 1, self._blend(state.average, params, seen), inner)

    def final(self, params: Params, state: State) -> Params:
        return self.rule.final(params, state.inner) if state.average is None else state.average

    def _blend(self, average: Params | None, params: Params, seen: int) -> Params:
        if average is None:
            return params
        decay = seen / (seen + 1) if self.decay is None else self.decay
        return tree.map(lambda a, p: ema(a, p, decay), average, params)
