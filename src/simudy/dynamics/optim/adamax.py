"""Adamax: Adam with the infinity norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simudy.dynamics.optim.moments import Decaying, bias, ema
from simudy.dynamics.optim.rule import Decay, Rate


class State(NamedTuple):
    """Steps taken, running average of g and decayed maximum of |g|."""

    step: int
    mean: Tensor
    largest: Tensor


@dataclass
class Adamax(Decaying):
    """Adamax, as ``torch.optim.Adamax``.

    g ← g + λθ;  m ← β₁m + (1−β₁)g;  u ← max(β₂u, |g| + ε);  θ ← θ − η · m / ((1−β₁ᵗ)u).

    Args:
        lr: step size η.
        beta1, beta2: decays of m and u.
        eps: ε.
        weight_decay: λ.
        maximize: ascend.

    Reference: Kingma & Ba, arXiv:1412.6980, section 7.

    Example:
        >>> rule, params = Adamax(lr=0.1), {"w": torch.ones(1)}
        >>> rule.update({"w": torch.tensor([4.0])}, rule.init(params), params)[0]["w"]
        tensor([0.9000])
    """

    lr: Rate = 2e-3
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Rate = 1e-8
    weight_decay: Rate = 0.0
    maximize: bool = False

    def start(self, param: Tensor) -> State:
        zero = torch.zeros_like(param)
        return State(0, zero, zero)

    def step(self, grad: Tensor, state: State, param: Tensor) -> tuple[Tensor, State]:
        grad, param = self.decayed(grad, param)
        step, mean = state.step + 1, ema(state.mean, grad, self.beta1)
        largest = torch.maximum(self.beta2 * state.largest, grad.abs() + self.eps)
        return param - self.lr / bias(self.beta1, step) * mean / largest, State(step, mean, largest)
