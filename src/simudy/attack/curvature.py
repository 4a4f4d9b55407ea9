"""A Gauss-Newton step for images in the span: the first layer says how the displacement bends with them.

With images C ``(n, r)`` in the span's coordinates, the reduced first layer's displacement is ΔŴ1 = D̂ᵀC, where row i of
D̂ ``(n, out)`` is what image i did to the layer's outputs over the whole run. Moving C moves ΔŴ1 by D̂ᵀdC, apart from the
slower change of D̂ itself; the Gauss-Newton matrix of the squared distance is then D̂D̂ᵀ ``(n, n)``, the same for each of
the r columns. The gradient stays the exact one, so a step goes to the same stationary points, only straighter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simudy.dynamics.tree import Params

_RIDGE = 1e-9  # relative; C is square and may be singular


class Curvature:
    """D̂D̂ᵀ, seen from the latest simulated displacement.

    Args:
        layer: name of the first layer's weight.
        damping: fraction of the mean curvature added to all directions (Levenberg).
        drift: part of ΔŴ1 ``(out, r)`` that no image causes (weight decay).
    """

    def __init__(self, layer: str, damping: float, *, drift: Tensor) -> None:
        self.layer, self.damping, self.drift = layer, damping, drift
        self.matrix = torch.zeros(0)

    @torch.no_grad()
    def observe(self, simulated: Params, coefficients: Tensor, scale: Tensor) -> None:
        """Take D̂ from ΔŴ1 = D̂ᵀC, least squares; ``scale`` is the norm that the distance divides by."""
        moved, c = (simulated[self.layer] - self.drift).double() / scale.double(), coefficients.double()
        gram = c @ c.mT
        influence = torch.linalg.solve(_damped(gram, _RIDGE), c @ moved.mT)  # D̂ (n, out)
        self.matrix = _damped(influence @ influence.mT, self.damping)

    @torch.no_grad()
    def newton_step(self, grad: Tensor) -> Tensor:
        """The damped Gauss-Newton step for a gradient ``(n, r)``."""
        return torch.linalg.solve(self.matrix, grad.double()).to(grad.dtype)


def _damped(matrix: Tensor, fraction: float) -> Tensor:
    return matrix + fraction * matrix.diagonal().mean() * torch.eye(
        len(matrix), dtype=matrix.dtype, device=matrix.device
    )
