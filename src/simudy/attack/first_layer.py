"""What the first layer's displacement says about the images in the span, beyond the span itself.

With images C ``(n, r)`` in the span's coordinates, the reduced displacement is ΔŴ1 = D̂ᵀC, where row i of D̂ ``(n, out)``
is what image i did to the layer's outputs over the whole run.

*Curvature.* Moving C moves ΔŴ1 by D̂ᵀdC, apart from the slower change of D̂ itself. The Gauss-Newton matrix of the
squared distance is then D̂D̂ᵀ ``(n, n)``, the same for each of the r columns. The gradient stays the exact one: the step
goes to the same stationary points, only straighter.

*Focus.* The units of a ReLU network switch as C moves, which no derivative sees: D̂ = D + E, and least squares in C
shrinks towards zero as if E were signal (errors in variables). E points anywhere in the ``out`` dimensions, D only into
the column space of ΔW1, which is known. Compared within that space, most of E is gone, and the bias with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simudy.attack.coordinates import Coefficients
from simudy.attack.evidence import Evidence
from simudy.attack.span import without_gradients
from simudy.dynamics.tree import Params

_RIDGE = 1e-9  # relative; C is square and may be singular


@dataclass(frozen=True)
class FirstLayer:
    """The first layer in the span's coordinates.

    Attributes:
        name: of its weight. drift: the part of ΔW1 ``(out, r)`` that no image causes (weight decay).
        columns: orthonormal basis ``(out, r)`` of the column space of the rest.
        scale: coefficients over the leaf they are held in.
    """

    name: str
    drift: Tensor
    columns: Tensor
    scale: float

    @classmethod
    def of(cls, coordinates: Coefficients, evidence: Evidence) -> FirstLayer:
        """Read it off the evidence (the full one, not the reduced)."""
        span = coordinates.span
        still = without_gradients(evidence, span.layer)
        gradient_part = (evidence.final[span.layer] - still) @ span.basis.mT
        columns, _, _ = torch.linalg.svd(gradient_part.double(), full_matrices=False)
        drift = (still - evidence.initial[span.layer]) @ span.basis.mT
        return cls(span.layer, drift, columns.to(still.dtype), coordinates.scale)

    def focus(self, displacement: Params) -> Params:
        """The displacement with ΔW1 ``(out, r)`` seen within the column space: ``(r, r)``."""
        return {**displacement, self.name: self.columns.mT @ displacement[self.name]}

    @torch.no_grad()
    def curvature(
        self, simulated: Params, coefficients: Tensor, *, scale: Tensor, damping: float, focus: bool
    ) -> Tensor:
        """D̂D̂ᵀ over ``scale²`` (what the distance divides by), plus ``damping`` times its mean eigenvalue."""
        moved = simulated[self.name] - self.drift
        moved, c = (self.columns.mT @ moved if focus else moved).double() / scale, coefficients.double()
        influence = solve(_damped(c @ c.mT, _RIDGE), c @ moved.mT)  # D̂ from ΔŴ1 = D̂ᵀC
        return self.scale**2 * _damped(influence @ influence.mT, damping)


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """``matrix⁻¹ right``; not finite where the matrix is singular or not finite, which the outer loop refuses."""
    return torch.linalg.solve_ex(matrix, right)[0]


def _damped(matrix: Tensor, fraction: float) -> Tensor:
    return matrix + fraction * matrix.diagonal().mean() * torch.eye(len(matrix)).to(matrix)
