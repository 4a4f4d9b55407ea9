"""What is claimed of each reconstructed image, by the evidence for it alone: never by its looks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simudy.analysis.metrics import contrast, ssim

CERTIFIED, CONSISTENT, UNSUPPORTED = VERDICTS = ("certified", "consistent", "unsupported")
MEANING = {
    CERTIFIED: "the weights themselves prove it: solved for exactly, residual below the threshold",
    CONSISTENT: "independent searches came to the same picture, beyond what chance explains",
    UNSUPPORTED: "nothing but this one search speaks for it",
}

ALIKE = 0.75  # SSIM of images that are taken for the same one (docs/results/verdicts.md)


def likeness(images: Sequence[Tensor], partners: Tensor) -> Tensor:
    """How much the same picture each image of the first search is in all others.

    Beyond chance is not yet the same: where weights hold no more than colours and a rough layout,
    searches agree on these, and each fills in the rest.

    Args:
        images: normalised ``(n, c, h, w)`` of each search.
        partners: ``(searches − 1, n)``, as of ``agreement``.

    Returns: ``(n,)``, the lowest SSIM with a partner, as the paper takes it.

    Raises:
        SimudyError: images are shorter than the window of SSIM.
    """
    first, spread = images[0], contrast(images[0])
    pairs = zip(images[1:], partners, strict=True)
    return torch.stack([ssim(first, other[k], data_range=spread) for other, k in pairs]).amin(0)


def verdicts_on(
    count: int, *, certified: Sequence[bool] | None, consistent: Sequence[bool] | None
) -> list[str]:
    """One word for each of ``count`` images.

    Args:
        certified, consistent: what was found, by image; None where it was not looked for.
    """
    proved, agreed = (found or [False] * count for found in (certified, consistent))
    return [
        CERTIFIED if by_proof else CONSISTENT if by_agreement else UNSUPPORTED
        for by_proof, by_agreement in zip(proved, agreed, strict=True)
    ]


def counts_of(verdicts: Sequence[str]) -> dict[str, int]:
    """How many images have each of the three."""
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}
