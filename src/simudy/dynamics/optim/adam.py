"""Adam, AMSGrad and AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simudy.dynamics.optim.moments import Decaying, bias, ema, root
from simudy.dynamics.optim.rule import Decay, Rate


class Moments(NamedTuple):
    """Steps taken, running averages of g and g², and the largest average of g² so far (AMSGrad)."""

    step: int
    mean: Tensor
    square: Tensor
    largest: Tensor | None = None


@dataclass
class Adam(Decaying):
    """Adam, as ``torch.optim.Adam``; weight decay is coupled (an L2 term).

    g ← g + λθ;  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;  θ ← θ − η · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) +
    ε).

    Args:
        lr: step size η.
        beta1, beta2: decays of the two averages.
        eps: ε.
        weight_decay: λ.
        amsgrad: divide by the largest v so far.
        maximize: ascend.

    Reference: Kingma & Ba, arXiv:1412.6980; Reddi et al., arXiv:1904.09237 (AMSGrad).

    Example:
        >>> rule, params = Adam(lr=0.1), {"w": torch.ones(2)}
        >>> rule.update({"w": torch.tensor([3.0, -5.0])}, rule.init(params), params)[0]["w"]
        tensor([0.9000, 1.1000])
    """

    lr: Rate = 1e-3
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Rate = 1e-8
    weight_decay: Rate = 0.0
    amsgrad: bool = False
    maximize: bool = False

    def start(self, param: Tensor) -> Moments:
        zero = torch.zeros_like(param)
        return Moments(0, zero, zero, zero if self.amsgrad else None)

    def step(self, grad: Tensor, state: Moments, param: Tensor) -> tuple[Tensor, Moments]:
        grad, param = self.decayed(grad, param)
        step, mean = state.step + 1, ema(state.mean, grad, self.beta1)
        square = ema(state.square, grad * grad, self.beta2)
        largest = None if state.largest is None else torch.maximum(state.largest, square)
        scale = (
            root(square if largest is None else largest) / bias(self.beta2, step) ** 0.5 + self.eps
        )
        return param - self.lr / bias(self.beta1, step) * mean / scale, Moments(
            step, mean, square, largest
        )


@dataclass
class AdamW(Adam):
    """Adam with decoupled weight decay, as ``torch.optim.AdamW``: θ ← (1 − ηλ)θ before the step.

    Args:
        lr, beta1, beta2, eps, amsgrad, maximize: as ``Adam``.
        weight_decay: λ.

    Reference: Loshchilov & Hutter, Decoupled weight decay regularization, arXiv:1711.05101.

    Example:
        >>> rule, params = AdamW(lr=0.1, weight_decay=0.5), {"w": torch.ones(1)}
        >>> rule.update({"w": torch.ones(1)}, rule.init(params), params)[0]["w"]  # 0.95 − 0.1
        tensor([0.8500])
    """

    weight_decay: Rate = 0.01

    decoupled_weight_decay = True
