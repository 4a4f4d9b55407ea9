"""Augmentation that is given: the same images in the same step are changed in the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from simudy.errors import SimudyError
from simudy.ranges import COUNT, FRACTION

Change = Callable[[Tensor, int], Tensor]


class Augment:
    """Base of augmentations that are saved with the evidence: a dataclass whose fields are its
    options, called as ``augment(images, step)``.

    What it draws comes from ``draws(step)``, or is recorded otherwise; it is differentiable in the
    images, and draws nothing from torch's own generator.
    """

    seed: int

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """The batch ``(b, c, h, w)`` of batch number ``step``, from 0, as the network sees it."""
        raise NotImplementedError

    def draws(self, step: int) -> torch.Generator:
        """A generator for one batch, seeded with ``seed + step``."""
        return torch.Generator().manual_seed(self.seed + step)


@dataclass
class Flip(Augment):
    """Some images are mirrored, left to right: those whose number of
    ``torch.rand(b, generator=draws(step))`` is below ``p``.
    """

    seed: int = 0
    p: Annotated[float, FRACTION] = 0.5

    def __call__(self, images: Tensor, step: int) -> Tensor:
        turned = torch.rand(len(images), generator=self.draws(step)) < self.p
        return torch.where(turned.to(images.device)[:, None, None, None], images.flip(3), images)


@dataclass
class Crop(Augment):
    """Each image is padded with zeros and cut to its old size where
    ``torch.randint(2 * padding + 1, (b, 2), generator=draws(step))`` says: row, column.
    """

    seed: int = 0
    padding: Annotated[int, COUNT] = 4

    def __call__(self, images: Tensor, step: int) -> Tensor:
        size, (h, w) = 2 * self.padding + 1, images.shape[2:]
        places = torch.randint(size, (len(images), 2), generator=self.draws(step)).tolist()
        padded = F.pad(images, [self.padding] * 4)
        cut = [one[:, y : y + h, x : x + w] for one, (y, x) in zip(padded, places, strict=True)]
        return torch.stack(cut)


@dataclass
class Chain(Augment):
    """Several, one after the other."""

    parts: list[Augment]

    def __call__(self, images: Tensor, step: int) -> Tensor:
        for part in self.parts:
            images = part(images, step)
        return images


def augmented(change: Change, images: Tensor, step: int) -> Tensor:
    """``change(images, step)``, of which no simulation could be made if it were another each time.

    Raises:
        SimudyError: it gives another number of images, draws anew, or has no derivative.
    """
    found = change(images, step)
    name = getattr(change, "__name__", type(change).__name__)
    if not isinstance(found, Tensor) or len(found) != len(images):
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise SimudyError(
            f"augment={name} makes {given} of images {tuple(images.shape)}: give one for each"
        )
    if not step and not torch.equal(found, change(images, step)):
        raise SimudyError(
            f"augment={name} draws anew at each call: draw from a generator seeded by the step, as "
            "simudy.Augment.draws(step)"
        )
    if images.requires_grad and torch.is_grad_enabled() and not found.requires_grad:
        raise SimudyError(
            f"augment={name} has no derivative in the images: use operations of torch, no copies"
        )
    return found
