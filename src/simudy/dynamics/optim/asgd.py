"""Averaged SGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from simudy.dynamics.optim.moments import Decaying, choose
from simudy.dynamics.optim.rule import Rate, Scalar, less


class State(NamedTuple):
    """Steps taken, the step size of the next one, and the average of the iterates."""

    step: int
    eta: Scalar
    average: Tensor


@dataclass
class ASGD(Decaying):
    """Averaged SGD, as ``torch.optim.ASGD``: it returns the last iterate, and the average is in its
    state.

    g ← g + λθ;  θ ← (1 − Λη)θ − ηg;  a ← a + (θ − a)/max(1, t − 1 − t0);  η ← lr/(1 + Λ·lr·t)^α
    for the next step (a learning rate that changes is felt one step later, as in torch).

    Args:
        lr: η of the first step.
        lambd: Λ.
        alpha: α.
        t0: steps before averaging begins.
        weight_decay: λ.
        maximize: ascend.

    Reference: Polyak & Juditsky, Acceleration of stochastic approximation by averaging, 1992.

    Example:
        >>> import torch
        >>> rule, params = ASGD(lr=0.5, lambd=0.2), {"w": torch.ones(1)}
        >>> rule.update({"w": torch.ones(1)}, rule.init(params), params)[0]["w"]  # 0.9 − 0.5
        tensor([0.4000])
    """

    lr: Rate = 0.01
    lambd: Rate = 1e-4
    alpha: Scalar = 0.75
    t0: Scalar = 1e6
    weight_decay: Rate = 0.0
    maximize: bool = False

    spans_gradients: ClassVar[bool] = True

    def step(self, grad: Tensor, state: State | None, param: Tensor) -> tuple[Tensor, State]:
        grad, param = self.decayed(grad, param)
        taken, eta = (0, self.lr) if state is None else (state.step, state.eta)
        moved = less((1 - self.lambd * eta) * param, eta, grad)
        seen = choose(taken - self.t0 > 1, taken - self.t0, 1.0)
        average = moved if state is None else state.average + (moved - state.average) * (1 / seen)
        eta = self.lr / (1 + self.lambd * self.lr * (taken + 1)) ** self.alpha
        return moved, State(taken + 1, eta, average)
