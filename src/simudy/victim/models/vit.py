"""Small vision transformer (Dosovitskiy et al. 2021), mean-pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from simudy.errors import SimudyError
from simudy.ranges import COUNT, DEPTH, WIDTH


class ViT(nn.Module):
    """Patches by a strided convolution, plus `position`, `depth` pre-norm blocks, mean over tokens,
    linear.

    The parameter ``position`` is ``(1, tokens, width)``; its displacement is a term of the attack's
    distance.

    Args:
        shape: ``(c, h, w)`` of an image; filled in from the data.
        classes: number of logits; filled in from the data.
        patch: side of a patch, in pixels; divides the image.
        width: of a token; a multiple of ``heads``.
        depth: blocks.
        heads: of the attention.

    Raises:
        SimudyError: ``patch`` does not divide the image, or ``heads`` not the width.
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        *,
        patch: Annotated[int, COUNT] = 4,
        width: Annotated[int, WIDTH] = 64,
        depth: Annotated[int, DEPTH] = 2,
        heads: Annotated[int, COUNT] = 2,
    ):
        super().__init__()
        c, h, w = shape
        if h % patch or w % patch:
            raise SimudyError(
                f"patches of {patch} do not tile {h}×{w} images: set ViT(patch=…) to a divisor"
            )
        if width % heads:
            raise SimudyError(
                f"{heads} heads do not share a width of {width}: set ViT(heads=…) to a divisor"
            )
        self.patches = nn.Conv2d(c, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (h // patch) * (w // patch), width))
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (n, c, h, w) -> logits (n, classes)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)  # (n, tokens, width)
        return self.head(self.norm(self.blocks(tokens + self.position)).mean(1))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); no dropout."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class Attention(nn.Module):
    """Multi-head self-attention in plain operations: the fused kernels have neither second nor
    forward derivatives.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (n, heads, tokens, ·)
        weights = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(3)
        return self.out((weights @ v).transpose(1, 2).flatten(2))
