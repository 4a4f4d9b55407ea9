"""What is claimed of each reconstructed image, by the evidence for it alone: never by its looks."""

from __future__ import annotations

from collections.abc import Sequence

CERTIFIED, CONSISTENT, UNSUPPORTED = VERDICTS = ("certified", "consistent", "unsupported")
MEANING = {
    CERTIFIED: "the weights themselves prove it: solved for exactly, residual below the threshold",
    CONSISTENT: "independent searches came to the same image, more alike than unrelated ones are",
    UNSUPPORTED: "nothing but this one search speaks for it",
}


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
