"""Arrays in a NumPy archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from zipfile import BadZipFile

import numpy as np
import torch

from simudy.errors import SimudyError
from simudy.files import user_path
from simudy.ranges import COUNT, NUMBER_OF
from simudy.victim.data.images import Splits
from simudy.victim.data.pixels import as_pixels, channels_first
from simudy.victim.data.select import Pool, split


@dataclass
class Npz:
    """An archive with `images`, (m, h, w), (m, h, w, c) or (m, c, h, w), uint8 or floats in [0, 1],
    and `labels`, (m,).

    path: the .npz file. n: images of the victim, the first of each class. heldout: the next ones,
    as controls; None: as many as n. pretrain: how many of the rest to pretrain on. shuffle: draw
    with the seed, not the first of each class. Normalisation is measured on the held-out images.
    """

    path: str
    n: Annotated[int, COUNT] = 20
    heldout: Annotated[int | None, NUMBER_OF] = None
    pretrain: Annotated[int, NUMBER_OF] = 0
    shuffle: bool = False

    def load(self, *, seed: int) -> Splits:
        """Images (n, c, h, w). SimudyError for a missing or unreadable file, or arrays unlike the
        above.
        """
        images, labels = read_arrays(user_path(self.path))
        pixels, numbers = (
            channels_first(as_pixels(images)),
            torch.from_numpy(labels.astype(np.int64)),
        )
        classes = tuple(str(i) for i in range(int(numbers.max()) + 1)) if len(numbers) else ()
        pool = Pool(numbers, classes, pixels.__getitem__)
        order = pool.order(seed if self.shuffle else None)
        return split(pool, order, n=self.n, heldout=self.heldout, pretrain=self.pretrain)


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The two arrays, as long as each other."""
    if not path.is_file():
        raise SimudyError(
            f"no file '{path}': set data.path to an .npz archive with arrays images and labels"
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except (KeyError, ValueError, BadZipFile, AttributeError, TypeError) as error:
        raise SimudyError(
            f"'{path}' holds no plain arrays images and labels: write it with numpy.savez"
        ) from error
    if (
        labels.ndim != 1
        or len(labels) != len(images)
        or not np.issubdtype(labels.dtype, np.integer)
    ):
        raise SimudyError(
            f"labels in '{path}' are {labels.dtype} {labels.shape}: give one integer per image"
        )
    return images, labels
