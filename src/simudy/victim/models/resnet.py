"""Residual networks for small images (He et al. 2016, with the 3×3 stem common on CIFAR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from simudy.ranges import WIDTH
from simudy.victim.models.layers import lookup, norm_named


class ResNet(nn.Module):
    """3×3 stem without pooling, four stages of residual blocks, mean over space, linear.

    Depth 18, width 64 and 10 classes make 11.17 million parameters.

    Args:
        shape: ``(c, h, w)`` of an image; filled in from the data.
        classes: number of logits; filled in from the data.
        depth: 18, 34 (basic blocks) or 50 (bottlenecks).
        width: channels of the first stage, doubled at each next one.
        norm: "batch", "group" (8 groups) or "none".
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        *,
        depth: int = 18,
        width: Annotated[int, WIDTH] = 64,
        norm: str = "batch",
    ):
        super().__init__()
        block, counts = lookup("depth", str(depth), DEPTHS)
        self.stem = nn.Sequential(*convolution(shape[0], width, norm), nn.ReLU())
        self.stages = nn.Sequential()
        entering = width
        for stage, count in enumerate(counts):
            channels, strides = width * 2**stage, [1 if stage == 0 else 2] + [1] * (count - 1)
            for stride in strides:
                self.stages.append(block(entering, channels, stride, norm))
                entering = channels * block.expansion
        self.head = nn.Linear(entering, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (n, c, h, w) -> logits (n, classes)."""
        return self.head(self.stages(self.stem(images)).mean((2, 3)))


class Block(nn.Module):
    """relu(body(x) + shortcut(x)), body being two 3×3 convolutions."""

    expansion = 1  # channels out per channel within

    def __init__(self, entering: int, channels: int, stride: int, norm: str):
        super().__init__()
        leaving = channels * self.expansion
        self.body = self.convolutions(entering, channels, stride, norm)
        self.shortcut = nn.Sequential()
        if stride > 1 or entering != leaving:
            self.shortcut = nn.Sequential(
                *convolution(entering, leaving, norm, size=1, stride=stride)
            )
        self.relu = nn.ReLU()

    def convolutions(self, entering: int, channels: int, stride: int, norm: str) -> nn.Sequential:
        first, second = (
            convolution(entering, channels, norm, stride=stride),
            convolution(channels, channels, norm),
        )
        return nn.Sequential(*first, nn.ReLU(), *second)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class Bottleneck(Block):
    """The same with 1×1, 3×3 and 1×1 convolutions, the last widening fourfold."""

    expansion = 4

    def convolutions(self, entering: int, channels: int, stride: int, norm: str) -> nn.Sequential:
        narrow = convolution(entering, channels, norm, size=1)
        middle = convolution(channels, channels, norm, stride=stride)
        widen = convolution(channels, channels * self.expansion, norm, size=1)
        return nn.Sequential(*narrow, nn.ReLU(), *middle, nn.ReLU(), *widen)


DEPTHS: dict[str, tuple[type[Block], tuple[int, ...]]] = {
    "18": (Block, (2, 2, 2, 2)),
    "34": (Block, (3, 4, 6, 3)),
    "50": (Bottleneck, (3, 4, 6, 3)),
}


def convolution(
    entering: int, leaving: int, norm: str, *, size: int = 3, stride: int = 1
) -> tuple[nn.Module, nn.Module]:
    """A convolution without bias that keeps h and w (over stride), and its normalisation."""
    return nn.Conv2d(entering, leaving, size, stride, size // 2, bias=False), norm_named(
        norm, leaving
    )
