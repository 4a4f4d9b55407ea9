"""Opponent colours: axes along which those of natural images hardly correlate.

Ruderman, Cronin & Chiao, Statistics of cone responses to natural images, JOSA A 15 (1998).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_GREY, _RED_BLUE, _GREEN_PURPLE = [1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]


@lru_cache(maxsize=8)  # once: a copy to a GPU in every outer step would make the step wait for it
def opponent(dtype: torch.dtype = torch.float64, device: torch.device | None = None) -> Tensor:
    """Grey, red–blue and green–purple by red, green and blue ``(3, 3)``: orthonormal."""
    axes = torch.tensor([_GREY, _RED_BLUE, _GREEN_PURPLE], dtype=torch.float64)
    return (axes / axes.norm(dim=1, keepdim=True)).to(device, dtype)


def along(axes: Tensor, images: Tensor) -> Tensor:
    """Images ``(n, c, h, w)`` along each of ``axes`` ``(k, c)``: ``(n, k, h, w)``."""
    # By a product rather than einsum, whose result has its channels innermost: on a CPU the
    # derivatives of torch's convolutions then write out of bounds where channels are few.
    return (axes @ images.flatten(2)).unflatten(2, images.shape[2:])
