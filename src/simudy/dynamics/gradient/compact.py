"""A real displacement in the form of a simulated one: low-rank factors, where nothing but rounding
is lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simudy.dynamics.gradient.factored_weight import FactoredWeight, LowRank


def compact(displacement: Tensor, weight: Tensor, *, rank: int, steps: int) -> Tensor:
    """``displacement (out, in)`` as ``leftᵀ right`` of rank at most ``rank``, or as it is where
    that would not do.

    A run of ``steps`` steps leaves each entry of ``weight`` rounded as often, at random: what is
    dropped is no larger than that rounding. An inner product with a factored simulation then costs
    rank² · (in + out) instead of a product with a dense matrix.
    """
    rank = min(rank, min(displacement.shape) // 4)
    if rank < 1:
        return displacement
    left, values, right = leading(displacement, rank)
    rest = (displacement - (left * values) @ right).norm()
    tails = values.square().flip(0).cumsum(0).flip(0) - values.square()  # of the factors after each
    enough = tails + rest**2 <= _rounding(weight, steps) ** 2
    if not bool(enough[-1]):
        return displacement
    kept = int(enough.int().argmax()) + 1
    return FactoredWeight(
        {LowRank((left * values).mT[:kept].contiguous(), right[:kept].contiguous()): 1.0},
        displacement,
    )


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``rank`` singular triples ``(out, r), (r,), (r, in)``, about, by a sketch that
    never varies.
    """
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(0)
        left, values, columns = torch.svd_lowrank(matrix, q=rank, niter=4)
    return left, values, columns.mT


def _rounding(weight: Tensor, steps: int) -> float:
    return float(torch.finfo(weight.dtype).eps * weight.norm()) * steps**0.5
