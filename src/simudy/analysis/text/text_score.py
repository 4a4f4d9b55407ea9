"""How much of a text was found: tokens right, beside what a guess gets right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from simudy.analysis.pairing import hungarian


@torch.no_grad()
def score_tokens(found: Tensor, truth: Tensor, heldout: Tensor, alphabet: str) -> dict[str, Any]:
    """Tokens right, of all true ones, under the pairing of sentences that has most of them right.

    A position is read as the token of the largest share, which is the nearest one-hot row.

    Args:
        found: shares ``(m, 1, t, v)``.
        truth, heldout: one-hot ``(n, 1, t, v)`` and ``(k, 1, t, v)``.
        alphabet: v characters.

    Returns:
        ``right`` in [0, 1]; ``floor``: the same of held-out sentences, as many as were found, and
        of their most frequent token everywhere. For each ``true`` sentence ``read``, what was found
        for it, its number among those found in ``candidates`` (-1: none is left), and ``each``, its
        share right.
    """
    lines, true, others = (_numbers(texts) for texts in (found, truth, heldout))
    each, match = _right(lines, true)
    floor: dict[str, float | None] = {"heldout": None, "most_frequent": None}
    if len(others):
        again = others[torch.arange(len(lines)) % len(others)]
        frequent = int(others.flatten().mode().values)
        floor = {
            "heldout": _right(again, true)[0].mean().item(),
            "most_frequent": (true == frequent).float().mean().item(),
        }
    found_for = [lines[k] if k >= 0 else lines[0, :0] for k in match.tolist()]
    return {
        "right": each.mean().item(),
        "floor": floor,
        "true": _words(true, alphabet),
        "read": _words(found_for, alphabet),
        "candidates": match.tolist(),
        "each": each.tolist(),
    }


def read_text(shares: Tensor, alphabet: str) -> list[str]:
    """The words of shares ``(m, 1, t, v)``."""
    return _words(_numbers(shares), alphabet)


def tokens_right(found: Tensor, truth: Tensor) -> float:
    """``right`` of ``score_tokens`` alone."""
    return _right(_numbers(found), _numbers(truth))[0].mean().item()


def _words(lines: Iterable[Tensor], alphabet: str) -> list[str]:
    return ["".join(alphabet[i] for i in line.tolist()) for line in lines]


def _numbers(texts: Tensor) -> Tensor:
    """Each position's token ``(n, t)``."""
    return torch.nan_to_num(texts[:, 0]).argmax(2).cpu()


def _right(lines: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Of each true sentence the share right, and the number of what was found for it."""
    alike = (true[:, None] == lines).float().mean(2)  # (n, m)
    match = hungarian(alike)
    each = alike[torch.arange(len(true)), match.clamp(min=0)]
    return torch.where(match >= 0, each, 0.0), match
