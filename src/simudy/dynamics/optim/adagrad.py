"""Adagrad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simudy.dynamics.optim.moments import Decaying, root
from simudy.dynamics.optim.rule import Rate


class State(NamedTuple):
    """Steps taken and the sum of g²."""

    step: int
    total: Tensor


@dataclass
class Adagrad(Decaying):
    """Adagrad, as ``torch.optim.Adagrad``.

    g ← g + λθ;  s ← s + g²;  θ ← θ − η/(1 + (t−1)κ) · g / (√s + ε).

    Args:
        lr: step size η.
        lr_decay: κ.
        weight_decay: λ.
        eps: ε.
        initial_accumulator_value: s before the first step.
        maximize: ascend.

    Reference: Duchi, Hazan & Singer, Adaptive subgradient methods, JMLR 2011.

    Example:
        >>> rule, params = Adagrad(lr=0.1), {"w": torch.ones(1)}
        >>> rule.update({"w": torch.tensor([5.0])}, rule.init(params), params)[0]["w"]
        tensor([0.9000])
    """

    lr: Rate = 0.01
    lr_decay: Rate = 0.0
    weight_decay: Rate = 0.0
    initial_accumulator_value: Rate = 0.0
    eps: Rate = 1e-10
    maximize: bool = False

    def start(self, param: Tensor) -> State:
        return State(0, torch.zeros_like(param) + self.initial_accumulator_value)

    def step(self, grad: Tensor, state: State, param: Tensor) -> tuple[Tensor, State]:
        grad, param = self.decayed(grad, param)
        total = state.total + grad * grad
        lr = self.lr / (1 + state.step * self.lr_decay)
        return param - lr * grad / (root(total) + self.eps), State(state.step + 1, total)
