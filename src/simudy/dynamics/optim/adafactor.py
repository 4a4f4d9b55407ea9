"""Adafactor: second moments by rows and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simudy.dynamics.optim.moments import Decaying, choose, ema, root
from simudy.dynamics.optim.rule import Rate, Scalar


class State(NamedTuple):
    """Steps taken and the averages of g²: by rows and columns of a matrix, or by entries of a
    vector.
    """

    step: int
    row: Tensor | None
    column: Tensor | None
    square: Tensor | None


@dataclass
class Adafactor(Decaying):
    """Adafactor, as ``torch.optim.Adafactor``.

    w = t^β;  r ← (1−w)r + w·mean(g²) by rows, c alike by columns;  v = r·c/max(mean(r), ε₁) (a
    vector keeps v itself);  u = g/√max(v, ε₁²);  θ ← (1 − ηλ)θ − max(ε₂, rms(θ))·min(η, 1/√t)·
    u/max(1, rms(u)/d).

    Args:
        lr: η, the largest step relative to the weights.
        beta2_decay: β, at most 0.
        eps: ε₁ (None: that of the dtype) and ε₂.
        d: bound on the update's root mean square.
        weight_decay: λ, decoupled.
        maximize: ascend.

    Reference: Shazeer & Stern, Adafactor: adaptive learning rates with sublinear memory cost,
    arXiv:1804.04235.

    Example:
        >>> rule, params = Adafactor(lr=0.1), {"w": torch.ones(2)}
        >>> rule.update({"w": torch.tensor([3.0, -5.0])}, rule.init(params), params)[0]["w"]
        tensor([0.9000, 1.1000])
    """

    lr: Rate = 0.01
    beta2_decay: Scalar = -0.8
    eps: tuple[Rate | None, Rate] = (None, 1e-3)
    d: Rate = 1.0
    weight_decay: Rate = 0.0
    maximize: bool = False

    decoupled_weight_decay = True

    def start(self, param: Tensor) -> State:
        if param.ndim < 2:
            return State(0, None, None, torch.zeros_like(param))
        zero = torch.zeros_like(param)
        return State(0, zero[..., :1], zero[..., :1, :], None)

    def step(self, grad: Tensor, state: State, param: Tensor) -> tuple[Tensor, State]:
        size = _rms(param).clamp(min=self.eps[1])
        grad, param = self.decayed(grad, param)
        state = self._averaged(grad, state)
        most = state.step**-0.5
        direction = self._direction(grad, state)
        rate = size * choose(self.lr < most, self.lr, most)
        return param - rate / (_rms(direction) / self.d).clamp(min=1) * direction, state

    def _averaged(self, grad: Tensor, state: State) -> State:
        step, square = state.step + 1, grad * grad
        old = 1 - step**self.beta2_decay
        if state.row is None or state.column is None:
            return State(step, None, None, ema(state.square, square, old))
        row = ema(state.row, square.mean(-1, keepdim=True), old)
        return State(step, row, ema(state.column, square.mean(-2, keepdim=True), old), None)

    def _direction(self, grad: Tensor, state: State) -> Tensor:
        least = torch.finfo(grad.dtype).eps if self.eps[0] is None else self.eps[0]
        if state.row is None or state.column is None:
            square = state.square
        else:
            mean = state.row.mean(-2, keepdim=True).clamp(min=least)
            square = state.row @ state.column / mean
        assert square is not None
        return grad * square.clamp(min=least**2).rsqrt()


def _rms(leaf: Tensor) -> Tensor:
    return root(leaf.square().mean())
