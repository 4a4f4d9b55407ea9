"""Arrays in a NumPy archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch

from simudy.errors import SimudyError
from simudy.files import user_path
from simudy.victim.data.images import Splits
from simudy.victim.data.pixels import as_pixels, channels_first
from simudy.victim.data.select import Pool, Selection, numbered_classes

Arrays = dict[str, np.ndarray]
BOMB = 2**28  # bytes of an array, from which on its packing is looked at


@dataclass
class Npz(Selection):
    """An archive with `images`, (m, h, w), (m, h, w, c) or (m, c, h, w), uint8 or floats in [0, 1],
    and `labels`, (m,).

    Args:
        path: the .npz file.
        n, heldout, pretrain, shuffle: see ``Selection``.
    """

    path: str

    def load(self, *, seed: int) -> Splits:
        """Images (n, c, h, w). SimudyError for a missing or unreadable file, or arrays unlike the
        above.
        """
        images, labels = read_arrays(user_path(self.path))
        pixels = channels_first(as_pixels(images))
        numbers = torch.from_numpy(labels.astype(np.int64))
        pool = Pool(numbers, numbered_classes(numbers), pixels.__getitem__)
        return self.of(pool, seed=seed)


def _refuse_bombs(path: Path) -> None:
    """Photographs do not pack to a hundredth."""
    with ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.file_size > BOMB and entry.file_size > 100 * entry.compress_size:
                raise SimudyError(
                    f"'{path}' unpacks to {entry.file_size:,} bytes, a hundred times its size: "
                    "write it with numpy.savez"
                )


def _native(array: np.ndarray) -> np.ndarray:
    """In this machine's order of bytes, as torch wants it."""
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ValueError(f"an array of {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def read_archive(path: Path, names: Sequence[str], *, optional: Sequence[str] = ()) -> Arrays:
    """The arrays called ``names``, and of the ``optional`` ones those that there are.

    Raises:
        SimudyError: the file is missing or damaged, or lacks one.
    """
    try:
        _refuse_bombs(path)
        with np.load(path, allow_pickle=False) as archive:
            there = [*names, *(name for name in optional if name in archive)]
            return {name: _native(archive[name]) for name in there}
    except SimudyError:
        raise
    except Exception as error:  # zip, zlib and numpy raise what they like on bytes from anywhere
        wanted = f"arrays {' and '.join(names)}" if len(names) > 1 else f"array {names[0]}"
        raise SimudyError(f"'{path}' holds no plain {wanted}: write it with numpy.savez") from error


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The two arrays, as long as each other."""
    if not path.is_file():
        raise SimudyError(
            f"no file '{path}': set Npz(path=…) to an .npz archive with arrays images and labels"
        )
    images, labels = read_archive(path, ("images", "labels")).values()
    require_labels(labels, images.shape[:1], path)
    return images, labels


def require_labels(labels: np.ndarray, shape: tuple[int, ...], path: Path) -> None:
    """Raise a SimudyError unless there is one whole number per image."""
    if labels.ndim != 1 or labels.shape != shape or not np.issubdtype(labels.dtype, np.integer):
        raise SimudyError(
            f"labels in '{path}' are {labels.dtype} {labels.shape}: give one integer per image"
        )
