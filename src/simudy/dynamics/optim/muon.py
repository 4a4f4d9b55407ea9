"""Muon: momentum, orthogonalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simudy.dynamics.optim.moments import Decaying, ema, root
from simudy.dynamics.optim.rule import PerTensor, Rate, Scalar
from simudy.errors import SimudyError


@dataclass
class Muon(Decaying):
    """Muon for matrices, as ``torch.optim.Muon``, but in the precision of the parameters (torch
    rounds to bfloat16).

    b ← μb + (1−μ)g;  u = (1−μ)g + μb if Nesterov else b;  θ ← (1 − ηλ)θ − η·s·NS(u), where NS takes
    every singular value of u to about 1: X ← u/max(‖u‖, ε), then X ← aX + (bA + cA²)X with A = XXᵀ,
    ``ns_steps`` times, and s scales with the shape. A tensor of more than two dimensions (a
    convolution) is a matrix with one row per output.

    Args:
        lr: step size η.
        momentum: μ.
        weight_decay: λ, decoupled.
        eps: ε.
        nesterov: look ahead along the momentum.
        ns_coefficients: (a, b, c).
        ns_steps: Newton–Schulz iterations.
        adjust_lr_fn: s = √max(1, rows/columns) for ``original``, 0.2·√max(rows, columns) for
            ``match_rms_adamw``.
        others: the rule for tensors that are no matrices (biases, norms); embeddings and heads are
            for ``Groups``.

    Raises:
        SimudyError: a tensor of fewer than two dimensions and no rule in ``others``.

    Reference: Jordan et al., Muon, 2024 (kellerjordan.github.io/posts/muon); Liu et al.,
    arXiv:2502.16982.

    Example:
        >>> rule, params = Muon(lr=0.1, weight_decay=0.0), {"w": torch.eye(2)}
        >>> rule.update({"w": torch.eye(2)}, rule.init(params), params)[0]["w"].diagonal().allclose(
        ...     torch.tensor(0.9), atol=0.05)
        True
    """

    lr: Rate = 1e-3
    momentum: Rate = 0.95
    nesterov: bool = True
    weight_decay: Rate = 0.1
    eps: Rate = 1e-7
    ns_coefficients: tuple[Scalar, Scalar, Scalar] = (3.4445, -4.7750, 2.0315)
    ns_steps: int = 5
    adjust_lr_fn: str = "original"
    others: PerTensor | None = None

    decoupled_weight_decay = True

    def __post_init__(self) -> None:
        if self.adjust_lr_fn not in ("original", "match_rms_adamw"):
            raise SimudyError(
                f"Muon(adjust_lr_fn={self.adjust_lr_fn!r}): choose 'original' or 'match_rms_adamw'"
            )

    def start(self, param: Tensor) -> Any:
        return torch.zeros_like(param) if param.ndim > 1 else self._other(param).start(param)

    def step(self, grad: Tensor, state: Any, param: Tensor) -> tuple[Tensor, Any]:
        if param.ndim < 2:
            return self._other(param).step(grad, state, param)
        grad, param = self.decayed(grad, param)
        buffer = ema(state, grad, self.momentum)
        matrix = (ema(buffer, grad, self.momentum) if self.nesterov else buffer).flatten(1)
        return param - self.lr * self._scale(matrix) * self._orthogonal(matrix).view_as(
            param
        ), buffer

    def _other(self, param: Tensor) -> PerTensor:
        if self.others is None:
            raise SimudyError(
                f"Muon updates matrices and met a tensor of shape {tuple(param.shape)}: give it a "
                "rule by "
                f"Muon(others=AdamW(...)) or Groups"
            )
        return self.others

    def _scale(self, matrix: Tensor) -> float:
        rows, columns = matrix.shape
        return (
            max(1, rows / columns) ** 0.5
            if self.adjust_lr_fn == "original"
            else 0.2 * max(rows, columns) ** 0.5
        )

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        wide = matrix.shape[0] <= matrix.shape[1]
        x = matrix if wide else matrix.T
        x = x / root(x.square().sum()).clamp(min=self.eps)  # every singular value at most 1
        a, b, c = self.ns_coefficients
        for _ in range(self.ns_steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x if wide else x.T
