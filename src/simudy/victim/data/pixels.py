"""From whatever a file holds to float32 pixels in [0, 1]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from simudy.errors import SimudyError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's mode "L"


def as_pixels(array: np.ndarray | Tensor) -> Tensor:
    """Any shape, uint8 in 0..255 or floats already in [0, 1] -> float32 in [0, 1]; SimudyError for
    anything else.
    """
    values = torch.as_tensor(array)
    if values.dtype == torch.uint8:
        return values.float() / 255
    if not values.is_floating_point():
        raise SimudyError(f"images are {values.dtype}: give uint8 in 0..255 or floats in [0, 1]")
    if not bool(((values >= 0) & (values <= 1)).all()):  # NaN fails both comparisons
        raise SimudyError(
            "images hold values outside [0, 1]: give uint8 in 0..255, or floats divided by 255"
        )
    return values.float()


def channels_first(images: Tensor) -> Tensor:
    """(n, h, w), (n, h, w, c) or (n, c, h, w) -> (n, c, h, w), for c = 1 or 3.

    Where both readings are possible (images 1 or 3 pixels wide) channels come first. SimudyError if
    neither is.
    """
    if 0 in images.shape[1:]:
        raise SimudyError(f"images have shape {tuple(images.shape)}: give some with pixels")
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.permute(0, 3, 1, 2).contiguous()
    raise SimudyError(
        f"images have shape {tuple(images.shape)}: give (n, h, w), (n, h, w, c) or (n, c, h, w), c "
        "= 1 or 3"
    )


def resize(images: Tensor, size: int | None) -> Tensor:
    """(n, c, h, w) pixels -> (n, c, size, size) pixels, antialiased; unchanged where size is None
    or already so.
    """
    if size is None or images.shape[2:] == (size, size):
        return images
    if size < 1:
        raise SimudyError(
            f"Source(size={size}): give at least 1, or None to keep the images as they are"
        )
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)


def to_grey(images: Tensor) -> Tensor:
    """(n, 3, h, w) pixels -> (n, 1, h, w) luma; grey images pass unchanged."""
    if images.shape[1] == 1:
        return images
    luma = images.new_tensor(LUMA)[:, None, None]
    return (images * luma).sum(1, keepdim=True).clamp(0, 1)
