"""The pieces adaptive rules share: weight decay, running averages, bias correction, a square root
safe at zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simudy.dynamics.optim.rule import PerTensor, Scalar, is_on


class Decaying(PerTensor):
    """Base of the rules with weight decay: coupled (an L2 term in the gradient) or decoupled (θ
    shrinks on its own).
    """

    lr: Scalar
    weight_decay: Scalar
    maximize: bool = False
    decoupled_weight_decay: bool = False

    def decayed(self, grad: Tensor, param: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient to descend and the parameter to move, weight decay applied to one of
        them.
        """
        if self.maximize:
            grad = -1.0 * grad
        if not is_on(self.weight_decay):
            return grad, param
        if self.decoupled_weight_decay:
            return grad, (1 - self.lr * self.weight_decay) * param
        return grad + self.weight_decay * param, param


def ema(average: Any, value: Any, decay: Scalar) -> Any:
    """Exponential moving average: ``decay · average + (1 − decay) · value``."""
    return decay * average + (1 - decay) * value


def bias(decay: Scalar, step: int) -> Scalar:
    """1 − decay^step: the weight an average that started at zero has gathered after ``step``
    values.
    """
    return 1 - decay**step


def root(square: Tensor) -> Tensor:
    """√square, with derivative 0 (not infinity) where square is 0.

    Plain ``sqrt`` turns every gradient that is exactly zero (a dead unit) into a NaN
    hyper-gradient. For √(g²) + ε this choice also is the exact one: g / (|g| + ε) has slope 1/ε at
    g = 0. Values stay those of ``torch.optim``.
    """
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def choose(condition: bool | Tensor, then: Any, otherwise: Any) -> Any:
    """``then if condition else otherwise``, also for a condition that is a (batched) tensor."""
    if isinstance(condition, Tensor):
        return torch.where(condition, then, otherwise)
    return then if condition else otherwise
