"""Solvers of H w = v that ask for products with a symmetric H alone.

Each takes ``apply(w) -> H w`` over flat vectors and returns the last w, whether or not it is close:
the caller looks at ``v − H w``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Apply = Callable[[Tensor], Tensor]
Solver = Callable[[Apply, Tensor, float, int], Tensor]

_POWERS = 12  # products that the largest eigenvalue is estimated by


def conjugate_gradients(apply: Apply, v: Tensor, tolerance: float, iterations: int) -> Tensor:
    """For a positive definite H; gives up where it meets a direction in which H is not.

    Reference: Hestenes & Stiefel, Methods of conjugate gradients, 1952.
    """
    w, rest = torch.zeros_like(v), v
    along, square = rest, rest @ rest
    for _ in range(iterations):
        product = apply(along)
        curvature = along @ product
        if not curvature > 0:
            break
        w = w + square / curvature * along
        rest = rest - square / curvature * product
        before, square = square, rest @ rest
        if square <= tolerance**2 * (v @ v):
            break
        along = rest + square / before * along
    return w


def neumann(apply: Apply, v: Tensor, tolerance: float, iterations: int) -> Tensor:
    """α Σ_j (1 − αH)^j v with α = 1/λ_max, which is estimated: for a positive definite H.

    Reference: Lorraine et al., arXiv:1911.02590.
    """
    along, largest = v / v.norm(), v.norm()
    for _ in range(_POWERS):
        product = apply(along)
        largest = product.norm()
        along = product / largest
    rate = 1 / largest
    w = rate * v
    for _ in range(iterations):
        rest = v - apply(w)
        if rest.norm() <= tolerance * v.norm():
            break
        w = w + rate * rest
    return w


def gmres(apply: Apply, v: Tensor, tolerance: float, iterations: int) -> Tensor:
    """For any invertible H, such as that of a saddle; keeps a vector for every iteration.

    Reference: Saad & Schultz, GMRES, SIAM J. Sci. Stat. Comput. 1986.
    """
    size = v.norm()
    basis, columns, weights = [v / size], [], torch.zeros_like(size)[None]
    for _ in range(min(iterations, len(v))):
        product = apply(basis[-1])
        known = torch.stack(basis)
        column = known @ product
        product = product - column @ known
        again = known @ product  # a second time, for what rounding has left
        product, column, edge = product - again @ known, column + again, len(basis)
        columns.append(torch.cat([column, product.norm()[None]]))
        matrix = torch.stack([torch.nn.functional.pad(c, (0, edge + 1 - len(c))) for c in columns])
        target = torch.nn.functional.pad(size[None], (0, edge))
        weights = torch.linalg.lstsq(matrix.mT, target[:, None]).solution[:, 0]
        if (target - weights @ matrix).norm() <= tolerance * size:
            break
        basis.append(product / product.norm())
    return weights @ torch.stack(basis[: len(weights)])


SOLVERS: dict[str, Solver] = {"cg": conjugate_gradients, "neumann": neumann, "gmres": gmres}
