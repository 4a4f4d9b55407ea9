"""Schedule-free SGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from simudy.dynamics import tree
from simudy.dynamics.optim.moments import Decaying, choose, ema
from simudy.dynamics.optim.rule import Decay, Rate, Scalar, less
from simudy.dynamics.tree import Params


class State(NamedTuple):
    """The weights that take the steps, their average, and the sum of η² that it is weighted by."""

    moving: Tensor
    average: Tensor
    total: Scalar


@dataclass
class ScheduleFreeSGD(Decaying):
    """SGD that averages in place of a schedule; the run returns the average.

    The gradient g is taken at y = (1−β)z + βx;  g ← g + λy;  z ← z − ηg;  x ← (1−c)x + cz with
    c = η²/Σ η². Parameters are y during the run, and x at its end. Warm up by a schedule of ``lr``.

    Args:
        lr: step size η.
        beta: β, how near to the average the gradient is taken.
        weight_decay: λ.
        maximize: ascend.

    Reference: Defazio et al., The road less scheduled, arXiv:2405.15682.

    Example:
        >>> import torch
        >>> rule, params = ScheduleFreeSGD(lr=1.0), {"w": torch.zeros(1)}
        >>> state = rule.init(params)
        >>> for _ in range(2):
        ...     params, state = rule.update({"w": torch.ones(1)}, state, params)
        >>> rule.final(params, state)["w"]
        tensor([-1.5000])
    """

    lr: Rate = 1.0
    beta: Decay = 0.9
    weight_decay: Rate = 0.0
    maximize: bool = False

    spans_gradients: ClassVar[bool] = True

    def step(self, grad: Tensor, state: State | None, param: Tensor) -> tuple[Tensor, State]:
        grad, param = self.decayed(grad, param)
        moving, average, total = state or State(param, param, 0.0)
        weight = self.lr * self.lr
        total = total + weight
        share = choose(total > 0, weight / choose(total > 0, total, 1.0), 0.0)
        moving = less(moving, self.lr, grad)
        average = ema(average, moving, 1 - share)
        return ema(average, moving, self.beta), State(moving, average, total)

    def final(self, params: Params, state: dict[str, State | None]) -> Params:
        return tree.map(lambda p, held: p if held is None else held.average, params, state)
