"""What a run says to somebody who has to decide, and by which rule.

Three answers, no more. ``leaks`` needs proof: images certified by the weights, or a score clearly
above what images score that saw no weights. ``not seen to leak`` needs a search that could have
seen it: its run ends at the weights. Everything else is ``cannot say``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simudy.analysis.verdicts import CERTIFIED, CONSISTENT

LEAKS, UNSEEN, UNKNOWN = "leaks", "not seen to leak", "cannot say"
MARGIN = 0.05  # of ssim_paper over the highest floor, which moves by less from draw to draw
FITTED = 0.01  # distance: a run that ends farther from the weights did not explain them
NOT_PROOF = (
    "That a search finds nothing is no proof that nothing can be found: another start, more "
    "iterations or another method may."
)


@dataclass(frozen=True)
class Conclusion:
    """An answer, the reasons for it, and what to do."""

    answer: str
    why: list[str]
    advice: list[str] = field(default_factory=list)


def conclude(result: Mapping[str, Any], *, agreement: Mapping[str, Any] | None) -> Conclusion:
    """The answer to the figures of ``result.json``.

    Args:
        agreement: what ``task=verdict`` found; None where it was not asked.
    """
    found = _leak(result) or _too_early(result) or _by_score(result) or _blind(result, agreement)
    answer, why = found
    certain = answer == LEAKS
    return Conclusion(answer, why if certain else [*why, NOT_PROOF], _ADVICE[answer])


def highest_floor(result: Mapping[str, Any]) -> float | None:
    """The best score of images that saw no weights."""
    floors = [value for value in (result.get("floor") or {}).values() if value is not None]
    return max(floors, default=None)


def _leak(result: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Proof, of either kind."""
    why, counts = [], result.get("verdict_counts") or {}
    if certified := counts.get(CERTIFIED, 0):
        total = sum(counts.values())
        why.append(f"{certified} of {total} images are certified: the weights alone prove them.")
    score, floor = result.get("ssim_paper"), highest_floor(result)
    if score is not None and floor is not None and score >= floor + MARGIN:
        why.append(
            f"SSIM {score:.4f} is {score - floor:.4f} above {floor:.4f}, the best of images that "
            f"saw no weights ({MARGIN} is called clear)."
        )
    return (LEAKS, why) if why else None


def _too_early(result: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """The search did not get where it could have seen anything."""
    distance, status = result.get("distance"), result["status"]
    if status not in ("finished", "converged"):
        return UNKNOWN, [f"The search was {status}: it did not come to its end."]
    if distance is None or not math.isfinite(distance):
        return UNKNOWN, ["The search has no distance: no step of it was finite."]
    if distance > FITTED:
        return UNKNOWN, [
            f"The search did not fit the weights: distance {distance:.3g}, where {FITTED:g} or "
            "less is called a fit. What it shows was not read out of them."
        ]
    return None


def _by_score(result: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    score, floor = result.get("ssim_paper"), highest_floor(result)
    if score is None or floor is None:
        return None
    return UNSEEN, [
        f"The search fits the weights (distance {result['distance']:.3g}), and yet SSIM "
        f"{score:.4f} is not {MARGIN} above {floor:.4f}, the best of images that saw no weights."
    ]


def _blind(result: Mapping[str, Any], agreement: Mapping[str, Any] | None) -> tuple[str, list[str]]:
    """Without the true images, and with nothing certified."""
    fits = f"The search fits the weights (distance {result['distance']:.3g}), but there are no "
    if agreement is None:
        return UNKNOWN, [
            f"{fits}true images to compare with, nothing is certified, and no independent search "
            "was asked (task=verdict)."
        ]
    if count := (result.get("verdict_counts") or {}).get(CONSISTENT, 0):
        return UNKNOWN, [
            f"{fits}true images to compare with. Independent searches agree on {count} of them: a "
            "sign of a leak, and no proof."
        ]
    return UNSEEN, [
        f"{fits}true images to compare with, nothing is certified, and independent searches agree "
        "on none of them."
    ]


_ADVICE = {
    LEAKS: [
        "Treat the images listed above as disclosed to whoever holds these weights.",
        "Do not publish weights from before and after a training run together: no checkpoints in "
        "between, no difference of weights, no update of a single client.",
        "Train on more images a run, or with clipped and noised gradients (DP-SGD), and run this "
        "again.",
        "Ask task=membership about images that are not among these: membership shows sooner than "
        "a picture.",
    ],
    UNSEEN: [
        "Run further searches with other seeds, and compare them: task=verdict verdict.runs=[…].",
        "Ask task=membership: it needs no search, and shows sooner than a picture.",
        "Do not write that these weights are safe. Write that this attack, at this cost, saw "
        "nothing.",
    ],
    UNKNOWN: [
        "Ask task=diagnose why: what this search could have seen, and what would change it.",
        "Simulate the run as it was: epochs, batches, rule and rate; give more iterations.",
        "Run further searches with other seeds, and compare them: task=verdict verdict.runs=[…].",
        "Ask task=membership: it needs no search, and shows sooner than a picture.",
    ],
}
