"""RMSprop, plain and centred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simudy.dynamics.optim.moments import Decaying, ema, root
from simudy.dynamics.optim.rule import Decay, Rate, is_on


class State(NamedTuple):
    """Running averages of g² and g, and the last displacement (over −η)."""

    square: Tensor
    mean: Tensor | None
    buffer: Tensor | None


@dataclass
class RMSprop(Decaying):
    """RMSprop, as ``torch.optim.RMSprop``.

    g ← g + λθ;  v ← αv + (1−α)g²;  d = g / (√(v − m²) + ε), with m ← αm + (1−α)g if centred and m =
    0 if not; b ← μb + d;  θ ← θ − ηb.

    Args:
        lr: step size η.
        alpha: decay α.
        eps: ε.
        weight_decay: λ.
        momentum: μ.
        centered: divide by the standard deviation of the gradient.
        maximize: ascend.

    Reference: Tieleman & Hinton, COURSERA lecture 6.5, 2012; Graves, arXiv:1308.0850 (centred).

    Example:
        >>> rule, params = RMSprop(lr=0.01), {"w": torch.ones(1)}
        >>> rule.update({"w": torch.ones(1)}, rule.init(params), params)[0]["w"]  # 1 − 0.01/√0.01
        tensor([0.9000])
    """

    lr: Rate = 0.01
    alpha: Decay = 0.99
    eps: Rate = 1e-8
    weight_decay: Rate = 0.0
    momentum: Rate = 0.0
    centered: bool = False
    maximize: bool = False

    def start(self, param: Tensor) -> State:
        zero = torch.zeros_like(param)
        return State(zero, zero if self.centered else None, None)

    def step(self, grad: Tensor, state: State, param: Tensor) -> tuple[Tensor, State]:
        grad, param = self.decayed(grad, param)
        square = ema(state.square, grad * grad, self.alpha)
        mean = None if state.mean is None else ema(state.mean, grad, self.alpha)
        direction = grad / (root(square if mean is None else square - mean * mean) + self.eps)
        if is_on(self.momentum) and state.buffer is not None:
            direction = self.momentum * state.buffer + direction
        return param - self.lr * direction, State(square, mean, direction)
