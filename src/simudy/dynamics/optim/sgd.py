"""Stochastic gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from simudy.dynamics.optim.moments import Decaying
from simudy.dynamics.optim.rule import Rate, Scalar, is_on, less


@dataclass
class SGD(Decaying):
    """SGD with momentum, dampening, Nesterov and weight decay, as ``torch.optim.SGD``.

    g ← g + λθ;  b ← μb + (1−τ)g (first step: b = g);  θ ← θ − η(g + μb if Nesterov else b).

    Args:
        lr: step size η, a number or a scalar tensor (as every field below that is not a flag).
        momentum: μ.
        dampening: τ.
        weight_decay: λ.
        nesterov: look ahead along the momentum.
        maximize: ascend.

    Reference: Sutskever et al., On the importance of initialization and momentum in deep learning,
    ICML 2013.

    Example:
        >>> import torch
        >>> rule, params = SGD(lr=0.1), {"w": torch.ones(2)}
        >>> rule.update({"w": torch.ones(2)}, rule.init(params), params)[0]["w"]
        tensor([0.9000, 0.9000])
    """

    lr: Rate = 0.01
    momentum: Rate = 0.0
    dampening: Scalar = 0.0
    nesterov: bool = False
    weight_decay: Rate = 0.0
    maximize: bool = False

    spans_gradients: ClassVar[bool] = True

    def step(
        self, grad: Tensor, state: Tensor | None, param: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        grad, param = self.decayed(grad, param)
        if not is_on(self.momentum):
            return less(param, self.lr, grad), None
        buffer = grad if state is None else self.momentum * state + (1 - self.dampening) * grad
        direction = grad + self.momentum * buffer if self.nesterov else buffer
        return less(param, self.lr, direction), buffer
