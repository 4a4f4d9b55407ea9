"""Resilient backpropagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simudy.dynamics.optim.rule import Bound, PerTensor, Rate


class State(NamedTuple):
    """The gradient of the step before, zero where it was undone, and the size of each entry's
    step.
    """

    previous: Tensor
    size: Tensor


@dataclass
class Rprop(PerTensor):
    """Rprop, as ``torch.optim.Rprop``: the sign of the gradient alone, each entry its own step.

    s ← clamp(s·η⁺, …) where g keeps its sign, s ← clamp(s·η⁻, …) and g ← 0 where it changes;
    θ ← θ − s·sign(g). The derivative by the data is zero almost everywhere, as that of every sign.

    Args:
        lr: size of the first step.
        etas: η⁻ and η⁺.
        step_sizes: the least and the largest s.
        maximize: ascend.

    Reference: Riedmiller & Braun, A direct adaptive method for faster backpropagation learning: the
    RPROP algorithm, ICNN 1993.

    Example:
        >>> rule, params = Rprop(lr=0.5), {"w": torch.ones(2)}
        >>> rule.update({"w": torch.tensor([3.0, -0.1])}, rule.init(params), params)[0]["w"]
        tensor([0.5000, 1.5000])
    """

    lr: Rate = 0.01
    etas: tuple[Bound, Bound] = (0.5, 1.2)
    step_sizes: tuple[Bound, Bound] = (1e-6, 50.0)
    maximize: bool = False

    def step(self, grad: Tensor, state: State | None, param: Tensor) -> tuple[Tensor, State]:
        grad = -1.0 * grad if self.maximize else grad
        one = torch.ones_like(param)
        if state is None:
            state = State(torch.zeros_like(param), self.lr * one)
        (shrink, grow), (least, most) = self.etas, self.step_sizes
        kept = grad * state.previous
        factor = torch.where(kept > 0, grow, torch.where(kept < 0, shrink, one))
        size = (state.size * factor).clamp(min=least).clamp(max=most)
        grad = torch.where(kept < 0, 0.0, grad)
        return param - size * grad.sign(), State(grad, size)
