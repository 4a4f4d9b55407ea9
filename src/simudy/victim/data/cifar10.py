"""CIFAR-10 in its official binary version: no pickle, no torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from simudy.errors import SimudyError
from simudy.files import read_text, user_path
from simudy.ranges import COUNT, NUMBER_OF, SIDE
from simudy.victim.data.images import Normalisation, Splits
from simudy.victim.data.pixels import as_pixels, resize, to_grey
from simudy.victim.data.select import Pool, at_least_one, balanced

FOLDER, BATCH, NAMES = "cifar-10-batches-bin", "data_batch_1.bin", "batches.meta.txt"
RECORD = 1 + 3 * 32 * 32  # a label byte, then the R, G and B planes, row by row
ANIMALS = (2, 3, 4, 5, 6, 7)  # the other four are vehicles
USUAL = Normalisation(
    (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
)  # of the 50,000 training images
FETCH = "fetch the binary version, https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


@dataclass
class Cifar10:
    """Colour 32×32 images of ten classes (Krizhevsky 2009), read from `data_batch_1.bin`.

    Normalisation: the constants everyone uses; for grey images, measured on the held-out ones.

    Args:
        root: the folder that holds `cifar-10-batches-bin`, or that folder.
        n: images of the victim, the first of each class.
        heldout: images kept as controls; None: as many as n.
        size: height and width in pixels; None: 32.
        grey: luma alone.
        binary: two classes, vehicles and animals.
        shuffle: draw n and heldout with the seed, not the first of each class.
        victim_records: [first, one past the last] of the records the victim's images are from.
        heldout_records: the same of the controls.
        pretrain_records: the same of the public images to pretrain on, all of them; None: none.
    """

    root: str
    n: Annotated[int, COUNT] = 20
    heldout: Annotated[int | None, NUMBER_OF] = None
    size: Annotated[int | None, SIDE] = None
    grey: bool = False
    binary: bool = False
    shuffle: bool = False
    victim_records: Sequence[int] = (0, 1000)
    heldout_records: Sequence[int] = (1000, 2000)
    pretrain_records: Sequence[int] | None = (2000, 10000)

    def load(self, *, seed: int) -> Splits:
        """Images (n, 3 or 1, size, size). SimudyError for missing or damaged files, or too few
        images of a class.
        """
        folder = find(user_path(self.root))
        pool = self.pool(read_records(folder / BATCH), read_names(folder / NAMES))
        wanted = (self.victim_records, self.heldout_records, self.pretrain_records)
        victims, controls, public = spans(wanted, len(pool.labels))
        order = pool.order(seed if self.shuffle else None)
        victim = balanced(pool, at_least_one(self.n), among=within(order, victims), option="n")
        count = self.n if self.heldout is None else self.heldout
        held = pool.take(balanced(pool, count, among=within(order, controls), option="heldout"))
        pretrain = pool.take(torch.arange(public.start, public.stop)) if public else None
        return Splits(
            pool.take(victim), held, pretrain, Normalisation.of(held.images) if self.grey else USUAL
        )

    def pool(self, records: np.ndarray, names: tuple[str, ...]) -> Pool:
        """records: (m, 3073) uint8, on disk."""
        labels = torch.tensor(records[:, 0], dtype=torch.int64)

        def read(indices: Tensor) -> Tensor:
            images = as_pixels(np.array(records[indices.numpy(), 1:]).reshape(-1, 3, 32, 32))
            return resize(to_grey(images) if self.grey else images, self.size)

        if self.binary:
            return Pool(
                torch.isin(labels, torch.tensor(ANIMALS)).long(), ("vehicle", "animal"), read
            )
        return Pool(labels, names, read)


def find(root: Path) -> Path:
    """The folder with the batches: root / cifar-10-batches-bin, or root itself."""
    for folder in (root / FOLDER, root):
        if (folder / BATCH).is_file():
            return folder
    raise SimudyError(
        f"no {FOLDER}/{BATCH} in '{root}': {FETCH}, and set Cifar10(root=…) to the folder it is "
        "unpacked in"
    )


def read_records(path: Path) -> np.ndarray:
    """(m, 3073) uint8, mapped: only the records that are indexed are read."""
    size = path.stat().st_size
    if size == 0 or size % RECORD:
        raise SimudyError(
            f"'{path}' is truncated or corrupt ({size} bytes, not a multiple of {RECORD}): {FETCH}"
        )
    records = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, RECORD)
    if records[:, 0].max() > 9:
        raise SimudyError(f"'{path}' is truncated or corrupt (a label above 9): {FETCH}")
    return records


def read_names(path: Path) -> tuple[str, ...]:
    names = tuple(read_text(path, FETCH).split()) if path.is_file() else ()
    if len(names) != 10:
        raise SimudyError(f"'{path}' is missing or does not name ten classes: {FETCH}")
    return names


def spans(wanted: Sequence[Sequence[int] | None], count: int) -> list[range]:
    """Each pair as a range of records. SimudyError where one leaves the file or two overlap (a leak
    of the secret).
    """
    found = []
    for part, pair in zip(("victim", "heldout", "pretrain"), wanted, strict=True):
        start, stop = pair if pair and len(pair) == 2 else (0, -1 if pair else 0)
        if not 0 <= start <= stop <= count:
            raise SimudyError(
                f"Cifar10({part}_records={pair}): give [first, one past the last] of the file's "
                f"{count} records"
            )
        if any(max(start, other.start) < min(stop, other.stop) for other in found):
            raise SimudyError(
                f"{part}_records [{start}, {stop}] overlaps another part: set "
                f"Cifar10({part}_records=…) apart"
            )
        found.append(range(start, stop))
    return found


def within(order: Tensor, span: range) -> Tensor:
    return order[(order >= span.start) & (order < span.stop)]
