"""The spectrum of a positive matrix that is known by its products alone (Lanczos quadrature)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]  # (d,) -> (d,)


def spectrum(product: Product, like: Tensor, *, starts: int, steps: int, seed: int) -> Tensor:
    """Eigenvalues and how many there are of each, one measure a start: ``(starts, 2, m)``.

    Σ weight·f(value) estimates Σ f(eigenvalue), without bias for polynomials below degree
    2·``steps``; for f = 1/(value + c) each measure is a lower bound on its start's share (Golub &
    Meurant, Matrices, Moments and Quadrature, 2010). Where ``starts·steps`` products would do for
    the whole matrix it is formed, and the one measure is exact.

    Args:
        product: with the matrix ``(d, d)``.
        like: a vector ``(d,)`` of the matrix's type.
        starts: independent vectors of ±1.
        steps: products from each.
        seed: draws the vectors.
    """
    size = len(like)
    if starts * steps >= size:
        unit = torch.eye(size, dtype=like.dtype, device=like.device)
        whole = torch.stack([product(row) for row in unit])
        values = torch.linalg.eigvalsh((whole + whole.mT) / 2).clamp(min=0)
        return torch.stack([values, torch.ones_like(values)])[None]
    rng = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (starts, size), generator=rng).to(like) * 2 - 1
    return torch.stack([_measure(product, start, steps) for start in signs])


def _measure(product: Product, start: Tensor, steps: int) -> Tensor:
    """Nodes and weights ``(2, steps)`` of Gauss's quadrature from one start."""
    diagonal, beside, basis = [], [], [start / start.norm()]
    for _ in range(steps):
        moved = product(basis[-1])
        diagonal.append(moved @ basis[-1])
        known = torch.stack(basis)
        for _ in range(2):  # once more, against what rounding left
            moved = moved - known.mT @ (known @ moved)
        if not moved.norm() > 1e-12 * diagonal[0].abs():  # the rest is never reached
            break
        beside.append(moved.norm())
        basis.append(moved / moved.norm())
    count = len(diagonal)
    matrix = torch.diag(torch.stack(diagonal))
    if count > 1:
        off = torch.stack(beside[: count - 1])
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    weights = start.square().sum() * vectors[0].square()
    rest = start.new_zeros(steps - count)
    return torch.stack([torch.cat([values.clamp(min=0), rest]), torch.cat([weights, rest])])
