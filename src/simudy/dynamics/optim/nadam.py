"""NAdam: Adam with Nesterov momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simudy.dynamics.optim.moments import Decaying, bias, ema, root
from simudy.dynamics.optim.rule import Decay, Rate, Scalar


class State(NamedTuple):
    """Steps taken, running averages of g and g², and the product of the momenta so far."""

    step: int
    mean: Tensor
    square: Tensor
    product: Scalar


@dataclass
class NAdam(Decaying):
    """NAdam, as ``torch.optim.NAdam``.

    μₜ = β₁(1 − 0.96^{tψ}/2);  θ ← θ − η · [(1−μₜ)g / (1 − Πμ) + μₜ₊₁m / (1 − μₜ₊₁Πμ)] /
    (√(v/(1−β₂ᵗ)) + ε), with m and v Adam's averages and Πμ = μ₁⋯μₜ.

    Args:
        lr: step size η.
        beta1, beta2: decays of the two averages.
        eps: ε.
        weight_decay: λ.
        momentum_decay: ψ, how fast the momentum warms up.
        decoupled_weight_decay: shrink θ by 1 − ηλ instead of adding λθ to the gradient.
        maximize: ascend.

    Reference: Dozat, Incorporating Nesterov momentum into Adam, ICLR workshop 2016.

    Example:
        >>> rule, params = NAdam(lr=0.1), {"w": torch.ones(1)}
        >>> rule.update({"w": torch.ones(1)}, rule.init(params), params)[0]["w"]
        tensor([0.8944])
    """

    lr: Rate = 2e-3
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Rate = 1e-8
    weight_decay: Rate = 0.0
    momentum_decay: Rate = 4e-3
    decoupled_weight_decay: bool = False
    maximize: bool = False

    def start(self, param: Tensor) -> State:
        zero = torch.zeros_like(param)
        return State(0, zero, zero, 1.0)

    def step(self, grad: Tensor, state: State, param: Tensor) -> tuple[Tensor, State]:
        grad, param = self.decayed(grad, param)
        step, mean = state.step + 1, ema(state.mean, grad, self.beta1)
        square = ema(state.square, grad * grad, self.beta2)
        now, ahead = self._momentum(step), self._momentum(step + 1)
        product = state.product * now
        blend = (1 - now) / (1 - product) * grad + ahead / (1 - product * ahead) * mean
        scale = root(square / bias(self.beta2, step)) + self.eps
        return param - self.lr * blend / scale, State(step, mean, square, product)

    def _momentum(self, step: int) -> Scalar:
        return self.beta1 * (1 - 0.5 * 0.96 ** (step * self.momentum_decay))
