"""Fully connected network."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated

from torch import Tensor, nn

from simudy.errors import SimudyError
from simudy.ranges import DEPTH, WIDTH
from simudy.victim.models.layers import activation_named


class MLP(nn.Module):
    """d → width → … → width → classes; the paper's is d-1000-1000-10.

    The first layer is linear in the flattened image, so its displacement spans the training images.

    Args:
        shape: ``(c, h, w)`` of an image; filled in from the data.
        classes: number of logits; filled in from the data.
        width: units of a hidden layer.
        depth: hidden layers.
        activation: a name in ``ACTIVATIONS``: see ``models/layers.py``.
        bias: "first" (the first layer alone, as in the paper), "all" or "none".
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        *,
        width: Annotated[int, WIDTH] = 1000,
        depth: Annotated[int, DEPTH] = 2,
        activation: str = "relu",
        bias: str = "first",
    ):
        super().__init__()
        if bias not in ("first", "all", "none"):
            raise SimudyError(f"no bias setting '{bias}': choose from first, all, none")
        sizes = [prod(shape), *[width] * depth, classes]
        self.layers = nn.Sequential(nn.Flatten())
        for i in range(depth + 1):
            self.layers.append(
                nn.Linear(
                    sizes[i], sizes[i + 1], bias=bias == "all" or (bias == "first" and i == 0)
                )
            )
            if i < depth:
                self.layers.append(activation_named(activation))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (n, c, h, w) -> logits (n, classes)."""
        return self.layers(images)
