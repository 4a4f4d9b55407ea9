"""What every source hands over: labelled images, how to normalise them, and who may see which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simudy.errors import SimudyError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images as pixels, not normalised.

    images: (n, c, h, w) float32 in [0, 1]; labels: (n,) int64 in [0, len(classes)); classes: their
    names. Raises SimudyError where images and labels do not fit together.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self):
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            shapes = f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise SimudyError(f"images and labels have shapes {shapes}: give (n, c, h, w) and (n,)")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        c, h, w = self.images.shape[1:]
        return c, h, w


@dataclass(frozen=True)
class Normalisation:
    """Per-channel affine map between pixels in [0, 1] and what a network is fed; differentiable.

    mean, std: one float per channel, in pixel units.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> Normalisation:
        """Mean and (biased) standard deviation of each channel of pixels (n, c, h, w). Raises
        SimudyError if n = 0.
        """
        if len(images) == 0:
            raise SimudyError(
                "normalisation is measured on the held-out images and there are none: set "
                "Source(heldout=1)"
            )
        std, mean = torch.std_mean(images.double(), dim=(0, 2, 3), correction=0)
        std[std < 1e-6] = 1.0  # a channel without contrast is only shifted
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def normalise(self, images: Tensor) -> Tensor:
        """(..., c, h, w) pixels to normalised values."""
        return (images - self._column(self.mean, images)) / self._column(self.std, images)

    def denormalise(self, images: Tensor) -> Tensor:
        """(..., c, h, w) normalised values to pixels; not clipped, so it inverts `normalise`
        exactly.
        """
        return images * self._column(self.std, images) + self._column(self.mean, images)

    @staticmethod
    def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values)[:, None, None]  # (c, 1, 1)


@dataclass(frozen=True, eq=False)
class Splits:
    """The three disjoint parts of a source.

    victim: the secret images, seen by the victim and the scorer alone. heldout: public images for
    controls and floors. pretrain: public images to pretrain a network on, if the source offers any.
    normalisation: public knowledge, hence never measured on the victim's images. alphabet: what the
    columns of an image stand for, where it is a text of one-hot rows.
    """

    victim: ImageSet
    heldout: ImageSet
    pretrain: ImageSet | None
    normalisation: Normalisation
    alphabet: str = ""


class Source(Protocol):
    """A data source: a dataclass whose fields are its options."""

    def load(self, *, seed: int) -> Splits:
        """Read the images. `seed` matters only to a source told to `shuffle`."""
        ...
