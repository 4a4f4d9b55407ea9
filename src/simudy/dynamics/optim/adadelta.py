"""Adadelta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simudy.dynamics.optim.moments import Decaying, ema, root
from simudy.dynamics.optim.rule import Decay, Rate


class State(NamedTuple):
    """Running averages of g² and of the squared displacement."""

    square: Tensor
    moved: Tensor


@dataclass
class Adadelta(Decaying):
    """Adadelta, as ``torch.optim.Adadelta``.

    g ← g + λθ;  v ← ρv + (1−ρ)g²;  d = g · √(u + ε) / √(v + ε);  u ← ρu + (1−ρ)d²;  θ ← θ − ηd.

    Args:
        lr: step size η.
        rho: ρ.
        eps: ε.
        weight_decay: λ.
        maximize: ascend.

    Reference: Zeiler, ADADELTA: an adaptive learning rate method, arXiv:1212.5701.

    Example:
        >>> rule, params = Adadelta(rho=0.0, eps=1.0), {"w": torch.ones(1)}
        >>> rule.update({"w": torch.ones(1)}, rule.init(params), params)[0]["w"]  # 1 − 1/√2
        tensor([0.2929])
    """

    lr: Rate = 1.0
    rho: Decay = 0.9
    eps: Rate = 1e-6
    weight_decay: Rate = 0.0
    maximize: bool = False

    def start(self, param: Tensor) -> State:
        zero = torch.zeros_like(param)
        return State(zero, zero)

    def step(self, grad: Tensor, state: State, param: Tensor) -> tuple[Tensor, State]:
        grad, param = self.decayed(grad, param)
        square = ema(state.square, grad * grad, self.rho)
        move = grad * root(state.moved + self.eps) / root(square + self.eps)
        return param - self.lr * move, State(square, ema(state.moved, move * move, self.rho))
