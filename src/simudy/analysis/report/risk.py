"""Which images are most at risk: the proved ones first, then the agreed, then the closest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simudy.analysis.pairing import UNMATCHED
from simudy.analysis.report.conclusion import MARGIN, MARGIN_OF_TOKENS, highest_floor
from simudy.analysis.score import RECOVERED, Score
from simudy.analysis.verdicts import UNSUPPORTED, VERDICTS

SHOWN = 8


def most_at_risk(
    result: Mapping[str, Any], score: Score | None, told: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """At most ``SHOWN``, worst first: ``image`` (the number of the reconstruction), its
    ``verdict``, ``ssim`` and ``name`` of its true image where these are known.

    An unsupported image is among them only where its score is clearly above the floor, and what
    counts as recovered.
    """
    verdicts: Sequence[str] = result.get("verdicts") or ()
    if tokens := result.get("tokens"):
        return _texts_at_risk(tokens, verdicts)
    partners = {p.paper_index: (i, p) for i, p in enumerate(score.pairs)} if score else {}
    partners.pop(UNMATCHED, None)
    rows = []
    for image, verdict in enumerate(verdicts):
        true, pair = partners.get(image, (None, None))
        ssim = pair.ssim_paper if pair else None
        clear = score is not None and ssim is not None and ssim >= _clear(score)
        if verdict != UNSUPPORTED or clear:
            name = _name(told.get("names"), true)
            rows.append({"image": image, "verdict": verdict, "ssim": ssim, "name": name})
    return sorted(rows, key=lambda r: (VERDICTS.index(r["verdict"]), -(r["ssim"] or 0.0)))[:SHOWN]


def _texts_at_risk(tokens: Mapping[str, Any], verdicts: Sequence[str]) -> list[dict[str, Any]]:
    """In place of ``ssim`` the share of its tokens that are ``right``, and the ``text`` read."""
    clear = max((highest_floor(tokens) or 0.0) + MARGIN_OF_TOKENS, RECOVERED)
    rows = [
        {"image": k, "verdict": verdict, "ssim": None, "name": None, "right": right, "text": text}
        for k, right, text in zip(
            *(tokens[key] for key in ("candidates", "each", "read")), strict=True
        )
        if k >= 0 and ((verdict := verdicts[k]) != UNSUPPORTED or right >= clear)
    ]
    return sorted(rows, key=lambda r: (VERDICTS.index(r["verdict"]), -r["right"]))[:SHOWN]


def _clear(score: Score) -> float:
    return max(score.highest_floor + MARGIN, RECOVERED)


def _name(names: Sequence[str] | None, true: int | None) -> str | None:
    return names[true] if names and true is not None and true < len(names) else None
