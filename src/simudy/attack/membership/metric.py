"""The metric in which row spaces are compared: that of natural vectors.

Patches of natural images share a few strong directions, which members and strangers have alike. In
the metric of public vectors' second moments they weigh no more than the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 0.01  # of the mean variance, added to every direction
MOST = 4096  # public vectors: more do not change the metric


@dataclass(frozen=True)
class Whitening:
    """p ↦ (C + εI)^(−1/2) p for vectors p, C being public vectors' second moments, by group.

    Attributes:
        axes: ``(groups, k, size)`` orthonormal, the directions that public vectors have.
        along: ``(groups, 1, k)`` factors on them, relative to the factor on all others, 1.
    """

    axes: Tensor
    along: Tensor

    @classmethod
    def of(cls, vectors: Tensor, *, ridge: float = RIDGE) -> Whitening:
        """From public vectors ``(groups, m, size)``."""
        vectors = vectors[:, :: -(-vectors.shape[1] // MOST)].double()
        _, values, axes = torch.linalg.svd(vectors, full_matrices=False)
        moments = values.square() / vectors.shape[1]
        least = ridge * moments.sum(1, keepdim=True) / vectors.shape[2]
        factors = (least / (moments + least)).sqrt()
        return cls(axes, torch.nan_to_num(factors, nan=1.0)[:, None])

    def __call__(self, vectors: Tensor) -> Tensor:
        """Vectors ``(…, groups, m, size)`` in the metric."""
        along = vectors @ self.axes.mT
        return vectors + (along * (self.along - 1)) @ self.axes
