"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simudy.dynamics.optim.moments import Decaying, ema
from simudy.dynamics.optim.rule import Decay, Rate


@dataclass
class Lion(Decaying):
    """Lion (evolved sign momentum), with decoupled weight decay.

    c = β₁m + (1−β₁)g;  θ ← (1 − ηλ)θ − η · sign(c);  m ← β₂m + (1−β₂)g.

    The sign is flat wherever it is smooth: the iterates carry no derivative with respect to the
    data, only with respect to η, λ and θ0. Finite differences agree.

    Args:
        lr: step size η.
        beta1: weight of the momentum in the sign.
        beta2: decay of the momentum.
        weight_decay: λ.
        maximize: ascend.

    Reference: Chen et al., Symbolic discovery of optimization algorithms, arXiv:2302.06675.

    Example:
        >>> rule, params = Lion(lr=0.1), {"w": torch.ones(2)}
        >>> rule.update({"w": torch.tensor([7.0, -0.1])}, rule.init(params), params)[0]["w"]
        tensor([0.9000, 1.1000])
    """

    lr: Rate = 1e-4
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    weight_decay: Rate = 0.0
    maximize: bool = False

    decoupled_weight_decay = True

    def start(self, param: Tensor) -> Tensor:
        return torch.zeros_like(param)

    def step(self, grad: Tensor, state: Tensor, param: Tensor) -> tuple[Tensor, Tensor]:
        grad, param = self.decayed(grad, param)
        return param - self.lr * ema(state, grad, self.beta1).sign(), ema(state, grad, self.beta2)
