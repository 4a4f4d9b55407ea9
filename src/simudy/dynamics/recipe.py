"""How a network was trained: the rule, the epochs and the division into batches."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from simudy.dynamics.optim import SGD, Rule
from simudy.dynamics.optim.schedule import Schedule, scaled
from simudy.errors import SimudyError


@dataclass
class Recipe:
    """A training run, but for its images: what the victim did, or what the attacker takes it to
    have done.

    Args:
        optimizer: the update rule.
        epochs: passes over the images.
        batch_size: images per step. Default: all of them. The last batch of an epoch may be
            smaller.
        shuffle: draw a new division every epoch, from ``seed``; otherwise one division, in order,
            throughout.
        schedule: factor on the rule's learning rate at each step (see
            ``simudy.dynamics.optim.schedule``).
    """

    optimizer: Rule = field(default_factory=SGD)
    epochs: int = 20
    batch_size: int | None = None
    shuffle: bool = False
    seed: int = 0
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SimudyError(f"recipe.{name}={value}: give 1 or more")

    def batches(self, n: int) -> list[Tensor]:
        """The indices ``(rows,)`` of the images in each step, over all epochs."""
        size, rng = self.batch_size or n, torch.Generator().manual_seed(self.seed)
        orders = [
            torch.randperm(n, generator=rng) if self.shuffle else torch.arange(n)
            for _ in range(self.epochs)
        ]
        if not self.shuffle:  # the same objects every epoch, so that batches can be sliced once
            return list(orders[0].split(size)) * self.epochs
        return [batch for order in orders for batch in order.split(size)]

    def steps(self, n: int) -> int:
        """Updates in the whole run on ``n`` images."""
        return self.epochs * -(-n // (self.batch_size or n))

    def rules(self, n: int) -> list[Rule]:
        """The rule of each step."""
        steps = self.steps(n)
        return (
            [self.optimizer] * steps
            if self.schedule is None
            else scaled(self.optimizer, steps, lr=self.schedule)
        )

    def collate(self, *columns: Tensor) -> list[tuple[Tensor, ...]]:
        """The batches of columns ``(n, …)`` (images, labels, …), one entry per step; equal
        divisions share tensors.
        """
        cut: dict[int, tuple[Tensor, ...]] = {}
        for rows in (divisions := self.batches(len(columns[0]))):
            if id(rows) not in cut:
                cut[id(rows)] = tuple(_take(column, rows) for column in columns)
        return [cut[id(rows)] for rows in divisions]


def _take(column: Tensor, rows: Tensor) -> Tensor:
    # Slices and whole columns are views; a gather would copy, and its backward pass scatter.
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows) and torch.equal(rows, torch.arange(first, last + 1)):
        return column if len(rows) == len(column) else column[first : last + 1]
    return column[rows.to(column.device)]
