"""What a run says to somebody who has to decide, and by which rule.

Three answers, no more. ``leaks`` needs proof: images certified by the weights, a score clearly
above what images score that saw no weights, or members told from others. ``not seen to leak`` needs
a search that could have seen it: its run ends at the weights, where it did not begin, and nothing
else hints at a leak. Everything else is ``cannot say``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simudy.analysis.verdicts import CERTIFIED, CONSISTENT

LEAKS, UNSEEN, UNKNOWN = "leaks", "not seen to leak", "cannot say"
MARGIN = 0.05  # of ssim_paper over the highest floor, which moves by less from draw to draw
# Of tokens: two draws of 8 held-out sentences of 16 differ with a standard deviation of 0.05.
MARGIN_OF_TOKENS = 0.15
LEVEL = 0.01  # of p-values
NEARER = 10  # times, that a search must have come to the weights before its failure says anything
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


def conclude(
    result: Mapping[str, Any],
    *,
    agreement: Mapping[str, Any] | None,
    membership: Mapping[str, Any] | None = None,
    exposure: Mapping[str, Any] | None = None,
    began: float | None = None,
) -> Conclusion:
    """The answer to the figures of ``result.json``, and of other tasks; None: not asked.

    Args:
        agreement, membership, exposure: what the files of these names hold.
        began: distance at which the search began.
    """
    answer, why = (
        _leak(result, membership)
        or _too_early(result, began)
        or _hinted(result, membership, exposure)
        or _by_score(result)
        or _blind(result, agreement)
    )
    certain = answer == LEAKS
    return Conclusion(answer, why if certain else [*why, NOT_PROOF], _ADVICE[answer])


def highest_floor(result: Mapping[str, Any]) -> float | None:
    """The best score of images that saw no weights."""
    floors = [value for value in (result.get("floor") or {}).values() if value is not None]
    return max(floors, default=None)


@dataclass(frozen=True)
class Judged:
    """The score that counts, beside its highest floor and what is clearly above that."""

    name: str
    things: str
    score: float | None
    floor: float | None
    margin: float


def judged(result: Mapping[str, Any]) -> Judged:
    """Of a text the share of tokens right, else the SSIM."""
    if tokens := result.get("tokens"):
        return Judged(
            "the share of tokens right",
            "texts",
            tokens["right"],
            highest_floor(tokens),
            MARGIN_OF_TOKENS,
        )
    return Judged("SSIM", "images", result.get("ssim_paper"), highest_floor(result), MARGIN)


def _leak(
    result: Mapping[str, Any], membership: Mapping[str, Any] | None
) -> tuple[str, list[str]] | None:
    """Proof, of any kind."""
    why, counts = [], result.get("verdict_counts") or {}
    if certified := counts.get(CERTIFIED, 0):
        total = sum(counts.values())
        why.append(f"{certified} of {total} images are certified: the weights alone prove them.")
    by = judged(result)
    if by.score is not None and by.floor is not None and by.score >= by.floor + by.margin:
        why.append(
            f"{by.name[:1].upper()}{by.name[1:]} {by.score:.4f} is {by.score - by.floor:.4f} above "
            f"{by.floor:.4f}, the best of {by.things} that saw no weights ({by.margin} is called "
            "clear)."
        )
    if told := members_told(membership):
        why.append(
            f"They tell who was trained on: {told[0]} of {told[1]} members have p ≤ 0.01, where "
            f"chance gives {LEVEL * told[1]:.1f} (task=membership)."
        )
    return (LEAKS, why) if why else None


def _too_early(result: Mapping[str, Any], began: float | None) -> tuple[str, list[str]] | None:
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
    if began is not None and distance > began / NEARER:
        return UNKNOWN, [
            f"The search fits the weights (distance {distance:.3g}), but so did the noise that it "
            f"began at ({began:.3g}): the weights moved in a way that hardly depends on images."
        ]
    return None


def _hinted(
    result: Mapping[str, Any],
    membership: Mapping[str, Any] | None,
    exposure: Mapping[str, Any] | None,
) -> tuple[str, list[str]] | None:
    """No proof, but too much to say that nothing is seen."""
    by, why = judged(result), []
    share = None if result.get("tokens") else result.get("recovered")  # of pixels, not of letters
    if share:
        why.append(
            f"{100 * share:.0f} % of the images count as recovered, though the score of all "
            f"({by.score:.4f} beside {by.floor or 0:.4f}) is not clear: look at the best ones."
        )
    if membership and not members_told(membership) and _unlikely(*_below(membership)):
        found, asked = _below(membership)
        why.append(f"{found} of {asked} candidates have p ≤ 0.01 (task=membership): too many.")
    if determined := images_determined(exposure):
        why.append(
            f"The weights determine part of {determined} images, whatever this search found "
            "(task=exposure)."
        )
    return (UNKNOWN, why) if why else None


def members_told(membership: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """How many known members have p ≤ 0.01, and of how many, where chance hardly gives as many."""
    known = [row for row in (membership or {}).get("candidates", ()) if row.get("member")]
    found = sum(row["p"] <= LEVEL for row in known)
    return (found, len(known)) if _unlikely(found, len(known)) else None


def images_determined(exposure: Mapping[str, Any] | None) -> int:
    """Of how many images the weights say something."""
    rows = (exposure or {}).get("images", ())
    return sum((row.get("dimensions") or 0) >= 1 or (row.get("bits") or 0) >= 1 for row in rows)


def _below(membership: Mapping[str, Any]) -> tuple[int, int]:
    return membership.get("below_1_percent", 0), len(membership.get("candidates", ()))


def _unlikely(found: int, asked: int) -> bool:
    """Whether so many p-values below ``LEVEL`` come by chance less than once in a thousand."""
    fewer = (math.comb(asked, k) * LEVEL**k * (1 - LEVEL) ** (asked - k) for k in range(found))
    return found > 0 and 1 - sum(fewer) < 1e-3


def _by_score(result: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    by = judged(result)
    if by.score is None or by.floor is None:
        return None
    return UNSEEN, [
        f"The search fits the weights (distance {result['distance']:.3g}), and yet {by.name} "
        f"{by.score:.4f} is not {by.margin} above {by.floor:.4f}, the best of {by.things} that saw "
        "no weights."
    ]


def _blind(result: Mapping[str, Any], agreement: Mapping[str, Any] | None) -> tuple[str, list[str]]:
    """Without the true images, and with nothing certified."""
    fits = f"The search fits the weights (distance {result['distance']:.3g}), but there are no "
    if agreement is None:
        return UNKNOWN, [
            f"{fits}true images to compare with, nothing is certified, and no independent search "
            "was asked (task=verdict)."
        ]
    if count := sum(p <= agreement["false_rate"] for p in agreement["p_values"]):
        same = (result.get("verdict_counts") or {}).get(CONSISTENT, 0)
        return UNKNOWN, [
            f"{fits}true images to compare with. Independent searches agree beyond chance on "
            f"{count} images, {same} of them consistent: a sign of a leak, and no proof."
        ]
    return UNSEEN, [
        f"{fits}true images to compare with, nothing is certified, and independent searches agree "
        "on none of them."
    ]


_ADVICE = {
    LEAKS: [
        "Treat what is named above as disclosed to whoever holds these weights.",
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
