"""Which images of a source become the secret, which the controls, which the pretraining set."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from simudy.errors import SimudyError
from simudy.ranges import COUNT, NUMBER_OF
from simudy.victim.data.images import ImageSet, Normalisation, Splits

log = logging.getLogger(__name__)

MOST_CLASSES = 10**6


@dataclass(frozen=True, eq=False)
class Pool:
    """All a source has, with the images still unread, so that only the chosen ones are decoded.

    labels: (m,) int64 in [0, len(classes)); classes: names; read: indices (k,) -> pixels (k, c, h,
    w) in [0, 1]. Raises SimudyError for labels outside that range.
    """

    labels: Tensor
    classes: tuple[str, ...]
    read: Callable[[Tensor], Tensor]

    def __post_init__(self):
        if len(self.labels) == 0:
            raise SimudyError("the data source holds no image: point data at one that does")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise SimudyError(
                f"labels run from {low} to {high}: number the {len(self.classes)} classes from 0"
            )

    def take(self, indices: Tensor) -> ImageSet:
        return ImageSet(self.read(indices), self.labels[indices], self.classes)

    def order(self, seed: int | None) -> Tensor:
        """(m,) indices: without a seed the source's own order, as in the paper; else a permutation
        drawn from it.
        """
        if seed is None:
            return torch.arange(len(self.labels))
        return torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))


@dataclass(kw_only=True)
class Selection:
    """Which of a source's images are taken.

    Normalisation is measured on the held-out images.

    Args:
        n: images of the victim, the first of each class.
        heldout: the next ones, as controls; None: as many as n.
        pretrain: how many of the rest to pretrain on.
        shuffle: draw with the seed, not the first of each class.
    """

    n: Annotated[int, COUNT] = 20
    heldout: Annotated[int | None, NUMBER_OF] = None
    pretrain: Annotated[int, NUMBER_OF] = 0
    shuffle: bool = False

    def of(self, pool: Pool, *, seed: int) -> Splits:
        """The images chosen, read. Raises SimudyError where images run out."""
        order = pool.order(seed if self.shuffle else None)
        return split(pool, order, n=self.n, heldout=self.heldout, pretrain=self.pretrain)


def split(
    pool: Pool, order: Tensor, *, n: int, heldout: int | None = None, pretrain: int = 0
) -> Splits:
    """In `order`, the first `n` images, balanced over the classes, are the secret; the next
    `heldout` (n unless told otherwise) are the controls, the next `pretrain` the pretraining set,
    each balanced in the same way.

    Normalisation is measured on the held-out images. Raises SimudyError where images run out.
    """
    victim = balanced(pool, at_least_one(n), among=order, option="n")
    among = without(order, victim)
    held = balanced(pool, n if heldout is None else heldout, among=among, option="heldout")
    among = without(among, held)
    rest = balanced(pool, pretrain, among=among, option="pretrain") if pretrain else None
    controls = pool.take(held)
    extra = None if rest is None else pool.take(rest)
    return Splits(pool.take(victim), controls, extra, Normalisation.of(controls.images))


def balanced(pool: Pool, n: int, *, among: Tensor, option: str) -> Tensor:
    """(n,) indices: the first of each class in `among`, dealt class by class: 0, 1, …, 0, 1, ….

    Any remainder of n by the number of classes so falls to the first classes, and every run of
    images (a batch) mixes the classes. A class without images is passed over, and of one that runs
    short all are taken, which is said. Raises SimudyError, naming data.`option`, where `among` is
    too few.
    """
    if n < 0:
        raise SimudyError(f"Source({option}={n}): give 0 or more")
    if n > len(among):
        raise SimudyError(
            f"Source({option}={n}), and there are {len(among)} images left: lower it, or give "
            "more images"
        )
    labels, count = pool.labels[among], len(pool.classes)
    held = torch.bincount(labels, minlength=count)  # (classes,)
    grouped = labels.argsort(stable=True)  # class by class, each in the order of `among`
    starts = held.cumsum(0) - held
    rank = torch.empty_like(labels)  # an image's place within its class
    rank[grouped] = torch.arange(len(labels)) - starts[labels[grouped]]
    chosen = among[(rank * count + labels).argsort()[:n]]
    _tell_uneven(pool, chosen, option)
    return chosen


def _tell_uneven(pool: Pool, chosen: Tensor, option: str) -> None:
    """Where some classes ran short: how many of each were taken."""
    of_each = torch.bincount(pool.labels[chosen], minlength=len(pool.classes))
    there = torch.bincount(pool.labels, minlength=len(pool.classes)) > 0
    counts = of_each[there]
    if len(counts) and int(counts.max() - counts.min()) > 1:
        few, most = int(counts.min()), int(counts.max())
        log.info("data.%s: the classes are uneven, %d to %d images of each", option, few, most)


def numbered_classes(labels: Tensor) -> tuple[str, ...]:
    """The numbers themselves as names, for labels ``(m,)``.

    Raises:
        SimudyError: a label is negative, or beyond any number of classes.
    """
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, -1)
    if low < 0 or high >= MOST_CLASSES:
        raise SimudyError(
            f"labels run from {low} to {high}: number the classes from 0, {MOST_CLASSES:,} at most"
        )
    return tuple(map(str, range(high + 1)))


def at_least_one(n: int) -> int:
    if n < 1:
        raise SimudyError(f"Source(n={n}): give the number of images to train on, at least 1")
    return n


def without(among: Tensor, taken: Tensor) -> Tensor:
    """`among` less `taken`, in order."""
    return among[~torch.isin(among, taken)]
