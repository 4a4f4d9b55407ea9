"""RAdam: Adam whose adaptive step waits until its variance is tractable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simudy.dynamics.optim.adam import Moments
from simudy.dynamics.optim.moments import Decaying, bias, choose, ema, root
from simudy.dynamics.optim.rule import Decay, Rate, Scalar


@dataclass
class RAdam(Decaying):
    """Rectified Adam, as ``torch.optim.RAdam``.

    ρ∞ = 2/(1−β₂) − 1;  ρ = ρ∞ − 2tβ₂ᵗ/(1−β₂ᵗ);  θ ← θ − η · m̂ · r√(1−β₂ᵗ)/(√v + ε) if ρ > 5, else
    θ − η · m̂, with r² = (ρ−4)(ρ−2)ρ∞ / ((ρ∞−4)(ρ∞−2)ρ) and Adam's m̂ and v.

    Args:
        lr: step size η.
        beta1, beta2: decays of the two averages.
        eps: ε.
        weight_decay: λ.
        decoupled_weight_decay: shrink θ by 1 − ηλ instead of adding λθ to the gradient.
        maximize: ascend.

    Reference: Liu et al., On the variance of the adaptive learning rate and beyond,
    arXiv:1908.03265.

    Example:
        >>> rule, params = RAdam(lr=0.1), {"w": torch.ones(1)}
        >>> grads = {"w": torch.tensor([2.0])}
        >>> rule.update(grads, rule.init(params), params)[0]["w"]  # not adaptive yet
        tensor([0.8000])
    """

    lr: Rate = 1e-3
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Rate = 1e-8
    weight_decay: Rate = 0.0
    decoupled_weight_decay: bool = False
    maximize: bool = False

    def start(self, param: Tensor) -> Moments:
        zero = torch.zeros_like(param)
        return Moments(0, zero, zero)

    def step(self, grad: Tensor, state: Moments, param: Tensor) -> tuple[Tensor, Moments]:
        grad, param = self.decayed(grad, param)
        step, mean = state.step + 1, ema(state.mean, grad, self.beta1)
        square = ema(state.square, grad * grad, self.beta2)
        adaptive, r = self._rectifier(step)
        scale = choose(adaptive, r * bias(self.beta2, step) ** 0.5 / (root(square) + self.eps), 1.0)
        return param - self.lr / bias(self.beta1, step) * mean * scale, Moments(step, mean, square)

    def _rectifier(self, step: int) -> tuple[bool | Tensor, Scalar]:
        """Whether the step is adaptive, and the factor r of an adaptive step."""
        longest = 2 / (1 - self.beta2) - 1
        length = longest - 2 * step * self.beta2**step / bias(self.beta2, step)
        adaptive = length > 5
        # Any lengths with a real root: r is not used below 5, nor may it be NaN there.
        length, longest = choose(adaptive, length, 6.0), choose(adaptive, longest, 6.0)
        return adaptive, (
            (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        ) ** 0.5
