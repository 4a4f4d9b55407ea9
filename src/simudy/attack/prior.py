"""What an image looks like before any evidence. Inputs are normalised images ``(n, c, h, w)``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Term = Callable[[Tensor], Tensor]


def prior(
    images: Callable[[], Tensor],
    pixels: tuple[Tensor, Tensor],
    *,
    tv: float,
    box: float,
    term: Term | None = None,
) -> Tensor | float:
    """tv·TV(x̂) + box·outside(x̂) + term(x̂); where none counts the images are not asked for.

    Args:
        images: gives x̂ ``(n, c, h, w)``, normalised.
        pixels: see ``pixel_range``.
        tv, box: weights.
        term: what else is believed, a function of x̂.
    """
    if not (tv or box or term):
        return 0.0
    x = images()
    inside = box * outside_box(x, *pixels) if box else 0.0
    return tv * total_variation(x) + inside + (term(x) if term else 0.0)


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation: mean |difference| down plus mean |difference| across, over all
    images.

    Args:
        images: ``(n, c, h, w)``, normalised or not.
    """
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    return down + across


def outside_box(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Mean squared distance to the pixel range; ``low`` and ``high`` are black and white in
    normalised units.
    """
    return (images - torch.minimum(torch.maximum(images, low), high)).square().mean()


def pixel_range(
    mean: tuple[float, ...], std: tuple[float, ...], *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Black and white in normalised units, ``(c, 1, 1)`` each."""
    m, s = (like.new_tensor(v)[:, None, None] for v in (mean, std))
    return -m / s, (1 - m) / s
