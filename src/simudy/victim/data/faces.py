"""Faces that ship with scikit-image: nothing to download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from simudy.ranges import COUNT, NUMBER_OF, SIDE
from simudy.victim.data.images import Splits
from simudy.victim.data.pixels import as_pixels, resize
from simudy.victim.data.select import Pool, split

EACH = 100  # lfw_subset holds 100 faces, then 100 crops of background


@dataclass
class Faces:
    """Grey 25×25 crops of two classes, "face" and "not a face", 100 of each.

    Source: `skimage.data.lfw_subset`, taken from Labeled Faces in the Wild (Huang et al. 2007).

    Args:
        n: images of the victim, both classes together.
        heldout: images kept as controls; None: as many as n.
        size: height and width in pixels.
        shuffle: draw the images with the seed, in place of the first of each class.
    """

    n: Annotated[int, COUNT] = 20
    heldout: Annotated[int | None, NUMBER_OF] = None
    size: Annotated[int, SIDE] = 25
    shuffle: bool = False

    def load(self, *, seed: int) -> Splits:
        """Images (n, 1, size, size). Raises SimudyError where n and heldout exceed what is
        there.
        """
        from skimage.data import lfw_subset  # part of the wheel: works offline, without pooch

        images = as_pixels(lfw_subset())[:, None]  # (200, 1, 25, 25)
        labels = torch.arange(len(images)) // EACH
        pool = Pool(labels, ("face", "not a face"), lambda rows: resize(images[rows], self.size))
        order = pool.order(seed if self.shuffle else None)
        return split(pool, order, n=self.n, heldout=self.heldout)
