"""What was seen of a training run, step by step."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from simudy.app.recorder.seen_loss import SeenLoss
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

TRAIL = 2**29  # bytes of weights kept along the way, to find where a replay departs


@dataclass
class Batch:
    """One forward and backward pass.

    Attributes:
        rows: which images, by their place in the album.
        loss: what was computed of them.
        factor: that the loss entered the gradient with.
    """

    rows: list[int]
    loss: SeenLoss
    factor: float


@dataclass(eq=False)
class Step:
    """One step of the optimizer.

    Attributes:
        batches: whose gradients it took.
        options: of every parameter group.
        made, used: ``(parameters, 2)``, norm and largest entry of each gradient as the backward
            pass left it, and as the optimizer found it.
    """

    batches: list[Batch]
    options: list[dict[str, Any]]
    made: Tensor
    used: Tensor


class Album:
    """The images of a run, each once, in the order in which they came."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._images: list[Tensor] = []
        self._labels: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._images)

    @property
    def images(self) -> Tensor:
        """``(n, …)``, as the network saw them."""
        return torch.stack(self._images)

    @property
    def labels(self) -> Tensor:
        """``(n, …)``."""
        return torch.stack(self._labels)

    def places(self, images: Tensor, labels: Tensor) -> list[int]:
        """Where each image of a batch is, after it is taken in if it is new.

        Raises:
            SimudyError: there is not one label for each, or shapes differ from those before.
        """
        if labels.dim() == 0 or len(images) != len(labels):
            raise SimudyError(
                f"the loss compares labels of shape {tuple(labels.shape)} with a batch of "
                f"{len(images)} images: give it one label per image"
            )
        if self._images and images.shape[1:] != self._images[0].shape:
            raise SimudyError(
                f"images of shape {tuple(images.shape[1:])} follow such of "
                f"{tuple(self._images[0].shape)}: no evidence can say that, so make them alike"
            )
        if self._labels and labels.shape[1:] != self._labels[0].shape:
            raise SimudyError(
                f"labels of shape {tuple(labels.shape[1:])} follow such of "
                f"{tuple(self._labels[0].shape)}, as where two losses are added: no evidence can "
                "say that, so record a run with one"
            )
        return [self._place(*pair) for pair in zip(images.cpu(), labels.cpu(), strict=True)]

    def _place(self, image: Tensor, label: Tensor) -> int:
        key = hashlib.sha256(_bytes(image) + _bytes(label)).digest()
        if key not in self._places:
            self._places[key] = len(self)
            self._images.append(image.clone())
            self._labels.append(label.clone())
        return self._places[key]


@dataclass
class Trail:
    """Weights after steps, by the number of steps taken: all of them, or every second, fourth, …
    where all would take more than ``limit`` bytes. The last is always there.
    """

    limit: int = field(default_factory=lambda: TRAIL)
    spacing: int = 1
    kept: dict[int, Params] = field(default_factory=dict)

    def add(self, taken: int, params: Params) -> None:
        """Keep a copy."""
        last = max(self.kept, default=0)
        if last % self.spacing:
            del self.kept[last]
        self.kept[taken] = {name: p.detach().cpu().clone() for name, p in params.items()}
        size = sum(p.numel() * p.element_size() for p in params.values())
        while len(self.kept) > 2 and len(self.kept) * size > self.limit:
            self.spacing *= 2
            self.kept = {t: p for t, p in self.kept.items() if not t % self.spacing or t == taken}


def _bytes(row: Tensor) -> bytes:
    return row.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
