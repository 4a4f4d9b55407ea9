"""What the first layer's displacement says about the images in the span, beyond the span itself.

With images C ``(n, r)`` in the span's coordinates, the reduced displacement is ΔŴ1 = D̂ᵀC, where
row i of D̂ ``(n, out)`` is what image i did to the layer's outputs over the whole run.

*Curvature.* Moving C moves ΔŴ1 by D̂ᵀdC, apart from the slower change of D̂ itself. The
Gauss-Newton matrix of the squared distance is then D̂D̂ᵀ ``(n, n)``, the same for each of the r
columns. The gradient stays the exact one: the step goes to the same stationary points, only
straighter.

*Focus.* The units of a ReLU network switch as C moves, which no derivative sees: D̂ = D + E, and
least squares in C shrinks towards zero as if E were signal (errors in variables). E points anywhere
in the ``out`` dimensions, D only into the column space of ΔW1, which is known. Compared within that
space, most of E is gone, and the bias with it.

*Decoding.* E is sparse: few units switch wrongly, and theirs is nearly all of it. So a row of D̂ is
as a word of an error-correcting code: r numbers, its coordinates in the column space, sent as
``out`` of which some arrive garbled. Robust regression reads them nearly as if none had
(iteratively reweighted least squares: Holland and Welsch, 1977; that sparse errors can be undone
exactly: Candès and Tao, Decoding by linear programming, 2005), and ΔW1 = DᵀC, solved for C, gives
the images. Nothing is differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simudy.attack.coordinates import SpanCoordinates
from simudy.attack.evidence import Evidence
from simudy.attack.first_layer.span import without_gradients
from simudy.dynamics.tree import Params

_RIDGE = 1e-9  # relative; C is square and may be singular
_ROUNDS = 5  # of reweighting
_TYPICAL = 0.75  # errors above this many times their median are distrusted


@dataclass(frozen=True)
class FirstLayer:
    """The first layer in the span's coordinates.

    Attributes:
        name: of its weight.
        drift: the part of ΔW1 ``(out, r)`` that no image causes (weight decay).
        columns: orthonormal basis ``(out, r)`` of the column space of the rest.
        within: the rest in it ``(r, r)``.
        scale: coefficients over the latent they are held in.
    """

    name: str
    drift: Tensor
    columns: Tensor
    within: Tensor
    scale: float

    @classmethod
    def of(cls, coordinates: SpanCoordinates, evidence: Evidence) -> FirstLayer:
        """Read it off the evidence (the full one, not the reduced)."""
        span = coordinates.span
        still = without_gradients(evidence, span.layer)
        gradient_part = (evidence.final[span.layer] - still) @ span.basis.mT
        columns, values, rows = torch.linalg.svd(gradient_part.double(), full_matrices=False)
        drift = (still - evidence.initial[span.layer]) @ span.basis.mT
        return cls(
            span.layer, drift, columns.to(still.dtype), values[:, None] * rows, coordinates.scale
        )

    def focus(self, displacement: Params) -> Params:
        """The displacement with ΔW1 ``(out, r)`` seen within the column space: ``(r, r)``."""
        return {**displacement, self.name: self.columns.mT @ displacement[self.name]}

    @torch.no_grad()
    def curvature(
        self, simulated: Params, coefficients: Tensor, *, scale: Tensor, damping: float, focus: bool
    ) -> Tensor:
        """D̂D̂ᵀ over ``scale²`` (what the distance divides by), plus ``damping`` times its mean
        eigenvalue.
        """
        influence = self._influence(simulated, coefficients) / scale
        influence = influence @ self.columns.double() if focus else influence
        return self.scale**2 * _damped(influence @ influence.mT, damping)

    @torch.no_grad()
    def decoded(self, simulated: Params, coefficients: Tensor, *, damping: float) -> Tensor:
        """The latent of the images that explain the real ΔW1, if they move the weights as those at
        ``coefficients`` do.

        Args:
            damping: holds back what moves ΔW1 little: the weight of the way gone, in mean
                eigenvalues of DDᵀ.
        """
        c = coefficients.double()
        d = _robust(
            self._influence(simulated, c), self.columns.double()
        )  # D within the column space
        curvature = _damped(d @ d.mT, damping)
        step = solve(curvature, d @ (self.within - d.mT @ c))
        return ((c + step) / self.scale).to(coefficients.dtype)

    def _influence(self, simulated: Params, coefficients: Tensor) -> Tensor:
        """D̂ ``(n, out)`` from ΔŴ1 = D̂ᵀC."""
        c, moved = coefficients.double(), (simulated[self.name] - self.drift).double()
        return solve(_damped(c @ c.mT, _RIDGE), c @ moved.mT)


def _robust(rows: Tensor, basis: Tensor) -> Tensor:
    """Coordinates ``(n, r)`` in an orthonormal basis ``(out, r)`` of rows ``(n, out)`` with some
    entries wrong.
    """
    found = rows @ basis
    for _ in range(_ROUNDS):
        error = rows - found @ basis.mT
        typical = _TYPICAL * error.abs().median(1, keepdim=True).values.clamp(
            min=torch.finfo(error.dtype).tiny
        )
        trust = 1 / (1 + (error / typical).square())  # Cauchy's weights
        pairs = zip(trust, rows, strict=True)
        found = torch.stack(
            [solve((basis.mT * w) @ basis, basis.mT @ (w * row)) for w, row in pairs]
        )
    return found


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """``matrix⁻¹ right``; not finite where the matrix is singular or not finite, which the outer
    loop refuses.
    """
    return torch.linalg.solve_ex(matrix, right)[0]


def _damped(matrix: Tensor, fraction: float) -> Tensor:
    return matrix + fraction * matrix.diagonal().mean() * torch.eye(len(matrix)).to(matrix)
