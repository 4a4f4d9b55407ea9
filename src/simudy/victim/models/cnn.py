"""Small convolutional network, for tests and quick runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from simudy.ranges import DEPTH, WIDTH
from simudy.victim.models.layers import activation_named, norm_named


class CNN(nn.Module):
    """`depth` blocks of 3×3 convolution (stride 2), norm and activation; then mean over space and a
    linear layer.

    Args:
        shape: ``(c, h, w)`` of an image; filled in from the data.
        classes: number of logits; filled in from the data.
        width: channels.
        depth: blocks.
        norm: "none", "batch" or "group" (8 groups).
        activation: a name in ``ACTIVATIONS``: see ``models/layers.py``.
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        *,
        width: Annotated[int, WIDTH] = 32,
        depth: Annotated[int, DEPTH] = 3,
        norm: str = "none",
        activation: str = "relu",
    ):
        super().__init__()
        self.blocks = nn.Sequential()
        for i in range(depth):
            channels = shape[0] if i == 0 else width
            self.blocks.append(
                nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=norm == "none")
            )
            self.blocks.append(norm_named(norm, width))
            self.blocks.append(activation_named(activation))
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (n, c, h, w) -> logits (n, classes)."""
        return self.head(self.blocks(images).mean((2, 3)))
