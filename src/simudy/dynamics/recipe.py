"""How a network was trained: the rule, the epochs and the division into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from simudy.dynamics.augment import Change, augmented
from simudy.dynamics.optim import SGD, Accumulated, Rule
from simudy.dynamics.optim.interop.lr_scheduler import Scheduler, stepped
from simudy.dynamics.optim.schedule import Schedule, scaled
from simudy.errors import SimudyError


@dataclass
class Recipe:
    """A training run, but for its images: what the victim did, or what the attacker takes it to
    have done.

    Args:
        optimizer: the update rule.
        epochs: passes over the images.
        batch_size: images per batch. Default: all of them. The last batch of an epoch may be
            smaller.
        shuffle: draw a new division every epoch, from ``seed``; otherwise one division, in order,
            throughout.
        seed: of the order.
        schedule: factor on the rule's learning rate at each batch (see
            ``simudy.dynamics.optim.schedule``), or such by name of the hyper-parameter
            (``{"lr": …, "momentum": …}``).
        scheduler: instead, ``(optimizer) -> scheduler`` of ``torch.optim.lr_scheduler``.
        scheduler_per: whether it is stepped after each ``epoch`` or each ``step`` of the optimizer.
        order: ``torch``, the order of a shuffling ``DataLoader`` whose own generator was seeded
            with ``seed``; ``torch_global``, of one without, where ``torch.manual_seed(seed)`` came
            right before the loop; or the indices themselves, one list per epoch (then cut into
            batches) or per batch. Default: what ``shuffle`` says.
        drop_last: leave out a last batch that is smaller, as a ``DataLoader`` does.
        accumulate: batches whose gradients are averaged before the optimizer takes a step.
        augment: ``(images, step) -> images`` of each batch, counted from 0, as the network saw it:
            the same at every call (see ``simudy.Augment``).

    Raises:
        SimudyError: a number is below 1, or two of these contradict each other.
    """

    optimizer: Rule = field(default_factory=SGD)
    epochs: int = 20
    batch_size: int | None = None
    shuffle: bool = False
    seed: int = 0
    schedule: Schedule | Mapping[str, Schedule] | None = None
    scheduler: Scheduler | None = None
    scheduler_per: Literal["epoch", "step"] = "epoch"
    order: Literal["torch", "torch_global"] | Sequence[Sequence[int]] | None = None
    drop_last: bool = False
    accumulate: int = 1
    augment: Change | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SimudyError(f"Recipe({name}={value}): give 1 or more")
        if self.schedule is not None and self.scheduler is not None:
            raise SimudyError("Recipe(schedule=…, scheduler=…) both set the rates: give one")
        if self.order is not None and self.shuffle:
            raise SimudyError("Recipe(order=…) says how images come: leave Recipe(shuffle=…) out")

    def __str__(self) -> str:
        """The gist, in one line."""
        rule = _named(self.optimizer)
        if self.schedule is not None or self.scheduler is not None:
            rule += ", scheduled"
        size = "batches of all" if self.batch_size is None else f"batches of {self.batch_size}"
        gathered = f", {self.accumulate} for a step" if self.accumulate > 1 else ""
        changed = "" if self.augment is None else ", augmented"
        return f"{rule}, {self.epochs} epochs in {size} images{gathered}{changed}"

    def batches(self, n: int) -> list[Tensor]:
        """The indices ``(rows,)`` of the images in each batch, over all epochs.

        Raises:
            SimudyError: the order does not fit ``n`` images, or no batch is full.
        """
        size = self.batch_size or n
        if not self.shuffle and self.order is None:
            # The same objects every epoch, so that batches can be sliced once.
            return self._cut(torch.arange(n), size) * self.epochs
        return [batch for order in self._orders(n) for batch in self._cut(order, size)]

    def steps(self, n: int) -> int:
        """Batches in the whole run on ``n`` images."""
        if self.order is not None and not isinstance(self.order, str):
            return len(self.batches(n))
        return self.epochs * len(self._cut(torch.arange(n), self.batch_size or n))

    def rules(self, n: int) -> list[Rule]:
        """The rule of each batch.

        Raises:
            SimudyError: epochs cannot be told apart where they count, or ``accumulate`` does not
                divide them.
        """
        steps, rule = self.steps(n), self.optimizer
        if self.accumulate > 1:
            self._per_epoch(steps, self.accumulate)
            rule = Accumulated(rule, every=self.accumulate)
        if self.schedule is not None:
            moved = self.schedule if isinstance(self.schedule, Mapping) else {"lr": self.schedule}
            return scaled(rule, steps, **moved)
        if self.scheduler is None:
            return [rule] * steps
        by_step = self.scheduler_per == "step"
        every = self.accumulate if by_step else self._per_epoch(steps, 1)
        moved = stepped(rule, -(-steps // every), self.scheduler)
        return [moved[t // every] for t in range(steps)]

    def _per_epoch(self, steps: int, divisor: int) -> int:
        """Batches in an epoch, which must be a multiple of ``divisor``."""
        if steps % self.epochs or (steps // self.epochs) % divisor:
            raise SimudyError(
                f"{steps} batches are no {self.epochs} epochs of equal length"
                + (f", a multiple of Recipe(accumulate={divisor})" if divisor > 1 else "")
                + ": set Recipe(epochs=…, batch_size=…, drop_last=…) to what the run had"
            )
        return steps // self.epochs

    def _cut(self, order: Tensor, size: int) -> list[Tensor]:
        parts = list(order.split(size))
        if self.drop_last and len(parts[-1]) < size:
            parts.pop()
        if not parts:
            raise SimudyError(
                f"Recipe(drop_last=…) leaves no batch of {size} of {len(order)} images: set "
                "Recipe(batch_size=…) lower"
            )
        return parts

    def _orders(self, n: int) -> list[Tensor]:
        """Indices in the order of the run, one tensor per epoch or batch."""
        if isinstance(self.order, str):
            return _of_loader(n, self.epochs, self.seed, own_generator=self.order == "torch")
        if self.order is not None:
            return _given(self.order, n)
        rng = torch.Generator().manual_seed(self.seed)
        return [torch.randperm(n, generator=rng) for _ in range(self.epochs)]

    def collate(self, *columns: Tensor) -> list[tuple[Tensor, ...]]:
        """The batches of columns ``(n, …)`` (images, labels, …), one entry per step; equal
        divisions share tensors. Images, the first column, are augmented.
        """
        cut: dict[int, tuple[Tensor, ...]] = {}
        for rows in (divisions := self.batches(len(columns[0]))):
            if id(rows) not in cut:
                cut[id(rows)] = tuple(_take(column, rows) for column in columns)
        parts = [cut[id(rows)] for rows in divisions]
        if self.augment is None:
            return parts
        return [(augmented(self.augment, x, t), *rest) for t, (x, *rest) in enumerate(parts)]


def _named(rule: Rule) -> str:
    """``Clipped(AdamW(lr=0.01))``."""
    name, inner = type(rule).__name__, getattr(rule, "rule", None)
    if isinstance(inner, Rule):
        return f"{name}({_named(inner)})"
    rate = getattr(rule, "lr", None)
    return f"{name}(lr={rate:.3g})" if isinstance(rate, (int, float)) else name


def _of_loader(n: int, epochs: int, seed: int, *, own_generator: bool) -> list[Tensor]:
    """The real one is asked, to the end of each epoch: what it draws before and after is its own
    affair.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed) if own_generator else None
        loader: Any = DataLoader(range(n), batch_size=n, shuffle=True, generator=generator)  # type: ignore[arg-type]
        return [order for _ in range(epochs) for order in loader]


def _given(order: Sequence[Sequence[int]], n: int) -> list[Tensor]:
    parts = [torch.as_tensor(part, dtype=torch.int64) for part in order]
    if any(not len(part) or int(part.min()) < 0 or int(part.max()) >= n for part in parts):
        raise SimudyError(
            f"Recipe(order=…) names images beyond the {n} there are, or none at all: give lists of "
            f"numbers from 0 to {n - 1}"
        )
    return parts


def _take(column: Tensor, rows: Tensor) -> Tensor:
    # Slices and whole columns are views; a gather would copy, and its backward pass scatter.
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows) and torch.equal(rows, torch.arange(first, last + 1)):
        return column if len(rows) == len(column) else column[first : last + 1]
    return column[rows.to(column.device)]
