"""How much of a text was found: tokens right, beside what a guess gets right."""

from __future__ import annotations

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
        of their most frequent token everywhere; ``read``: what was found for each true sentence.
    """
    lines, true, others = (_numbers(texts) for texts in (found, truth, heldout))
    right, match = _right(lines, true)
    floor: dict[str, float | None] = {"heldout": None, "most_frequent": None}
    if len(others):
        again = others[torch.arange(len(lines)) % len(others)]
        frequent = int(others.flatten().mode().values)
        floor = {
            "heldout": _right(again, true)[0],
            "most_frequent": (true == frequent).float().mean().item(),
        }
    read = ["".join(alphabet[i] for i in lines[k]) if k >= 0 else "" for k in match.tolist()]
    return {"right": right, "floor": floor, "read": read}


def _numbers(texts: Tensor) -> Tensor:
    """Each position's token ``(n, t)``."""
    return torch.nan_to_num(texts[:, 0]).argmax(2).cpu()


def _right(lines: Tensor, true: Tensor) -> tuple[float, Tensor]:
    alike = (true[:, None] == lines).float().mean(2)  # (n, m)
    match = hungarian(alike)
    kept = match >= 0
    return alike[kept, match[kept]].sum().item() / len(true), match
