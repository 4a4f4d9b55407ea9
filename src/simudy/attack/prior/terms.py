"""What an image looks like before any evidence. Inputs are normalised images ``(n, c, h, w)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from simudy.attack.prior.colours import along, opponent
from simudy.errors import SimudyError

Term = Callable[[Tensor], Tensor]


class Weights(Protocol):
    """What a method says of its images; see ``Simudy``."""

    tv: float
    colour: float
    box: float
    term: Term | None


def prior(
    images: Callable[[], Tensor],
    pixels: tuple[Tensor, Tensor],
    *,
    settings: Weights,
) -> Tensor | float:
    """tv·TV(x̂) + colour·TV(colours of x̂) + box·outside(x̂) + term(x̂); where none counts the images
    are not asked for.

    Args:
        images: gives x̂ ``(n, c, h, w)``, normalised.
        pixels: see ``pixel_range``.
        settings: weights, and what else is believed, a function of x̂.
    """
    s = settings
    if not (s.tv or s.colour or s.box or s.term):
        return 0.0
    x = images()
    coloured = s.colour * colour_variation(x) if s.colour else 0.0
    inside = s.box * outside_box(x, *pixels) if s.box else 0.0
    return s.tv * total_variation(x) + coloured + inside + (s.term(x) if s.term else 0.0)


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic total variation: mean |difference| down plus mean |difference| across, over all
    images.

    Args:
        images: ``(n, c, h, w)``, normalised or not.
    """
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    return down + across


def colour_variation(images: Tensor) -> Tensor:
    """Total variation of the opponent colours, red–blue and green–purple, without grey.

    In natural images colours vary a tenth as much as grey does; in those of a search that is far
    from its end, about half as much.

    Args:
        images: red, green and blue ``(n, 3, h, w)``, normalised or not.

    Raises:
        SimudyError: the images do not have three channels.
    """
    require_colours(images.shape[1:])
    return total_variation(along(opponent(images.dtype, images.device)[1:], images))


def require_colours(shape: Sequence[int]) -> None:
    """That images of this shape ``(c, h, w)`` are red, green and blue."""
    if len(shape) != 3 or shape[0] != 3:
        sizes = "×".join(map(str, shape))
        raise SimudyError(
            f"images of {sizes} numbers have no colours to weigh: set Method(colour=0)"
        )


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
