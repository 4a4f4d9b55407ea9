"""A small transformer that guesses each token from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from simudy.errors import SimudyError
from simudy.ranges import COUNT, DEPTH, WIDTH


class Writer(nn.Module):
    """``embedding`` plus ``position``, causal post-norm blocks, a linear layer to the next token.

    Texts are one-hot rows, or soft ones: an image ``(1, t, v)`` whose row i holds the share of
    every token at position i. The two logits it returns are of the text being written or not:
    ``log p`` and ``log(1 − p)``, log p the mean over the text's tokens but the first. So the
    cross-entropy of class 0 is −log p, the loss of a language model.

    Args:
        shape: ``(1, t, v)``; filled in from the data.
        classes: 2; filled in from the data.
        width: of a token; a multiple of ``heads``.
        depth: blocks.
        heads: of the attention.
        spread: standard deviation of the position embedding at first; 1 is the tokens' own.

    Raises:
        SimudyError: texts are no rows of tokens, or ``heads`` does not divide the width.
    """

    mask: Tensor

    def __init__(
        self,
        shape: Sequence[int] = (1, 16, 27),
        classes: int = 2,
        *,
        width: Annotated[int, WIDTH] = 32,
        depth: Annotated[int, DEPTH] = 2,
        heads: Annotated[int, COUNT] = 2,
        spread: float = 2.0,
    ):
        super().__init__()
        channels, tokens, vocabulary = shape
        if channels != 1 or classes != 2:
            raise SimudyError(
                f"Writer takes texts of shape (1, t, v) in 2 classes, not {tuple(shape)} in "
                f"{classes}: give texts, as Sentences makes them"
            )
        if width % heads:
            raise SimudyError(
                f"{heads} heads do not share a width of {width}: set Writer(heads=…) to a divisor"
            )
        self.embedding = nn.Parameter(torch.randn(vocabulary, width))
        self.position = nn.Parameter(spread * torch.randn(tokens, width))
        block = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("mask", torch.full((tokens, tokens), -1e9).triu(1))

    def forward(self, texts: Tensor) -> Tensor:
        """Shares (n, 1, t, v) -> logits (n, 2)."""
        rows = texts[:, 0]
        seen = self.blocks(rows @ self.embedding + self.position, mask=self.mask)
        guesses = self.head(seen).log_softmax(2)[:, :-1]
        log_p = (guesses * rows[:, 1:]).sum(2).mean(1)
        return torch.stack([log_p, (-torch.expm1(log_p)).log()], 1)
