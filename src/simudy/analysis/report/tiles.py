"""The few figures on the first screen of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simudy.analysis.report.conclusion import highest_floor, images_determined
from simudy.analysis.score import RECOVERED
from simudy.analysis.verdicts import VERDICTS

Tile = dict[str, str]
UNLIKE = 0.1  # 1 − cos between the linearised run and the real one, above which it says little


def tiles(result: Mapping[str, Any], told: Mapping[str, Any]) -> list[Tile]:
    """Score beside floor, verdicts, and what other tasks found: ``name``, ``value``, ``note``."""
    counts = result.get("verdict_counts") or {}
    verdicts = " · ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS[1:])
    return [
        _score(result),
        _tile("images certified", f"{counts.get(VERDICTS[0], 0)}", verdicts),
        _membership(told.get("membership")),
        _exposure(told.get("exposure")),
        _fit(result),
    ]


def _tile(name: str, value: str, note: str) -> Tile:
    return {"name": name, "value": value, "note": note}


def _score(result: Mapping[str, Any]) -> Tile:
    if tokens := result.get("tokens"):
        best = highest_floor(tokens) or 0.0
        note = "the floor: the best of held-out sentences and the most frequent token"
        return _tile("tokens right beside their floor", f"{tokens['right']:.3f} / {best:.3f}", note)
    score, floor = result.get("ssim_paper"), highest_floor(result)
    if score is None or floor is None:
        return _tile("SSIM beside its floor", "not known", "there are no true images here")
    recovered = 100 * (result.get("recovered") or 0.0)
    note = f"{recovered:.0f} % recovered (pixel SSIM > {RECOVERED})"
    return _tile("SSIM beside its floor", f"{score:.3f} / {floor:.3f}", note)


def _fit(result: Mapping[str, Any]) -> Tile:
    distance, seconds = result.get("distance"), result.get("seconds") or 0.0
    value = "none" if distance is None else f"{distance:.2g}"
    note = f"{result.get('iterations', 0):,} iterations in {seconds:,.0f} s"
    return _tile("distance from the weights", value, note)


def _membership(found: Mapping[str, Any] | None) -> Tile:
    name = "membership"
    if found is None:
        return _tile(name, "not asked", "task=membership")
    if found.get("power") == "none":
        return _tile(name, "no power", "the test cannot tell here")
    candidates = len(found.get("candidates", ()))
    below, chance = found.get("below_1_percent", 0), found.get("expected_by_chance", 0.0)
    note = f"candidates with p ≤ 0.01; by chance {chance:.1f}"
    if found.get("auc") is not None:
        note = f"{note}; AUC {found['auc']:.3f}"
    return _tile(name, f"{below} of {candidates}", note)


def _exposure(found: Mapping[str, Any] | None) -> Tile:
    name = "exposure"
    if found is None:
        return _tile(name, "not asked", "task=exposure")
    rows, floor = found.get("images") or [], found.get("psnr_floor") or 0.0
    if not rows:
        return _tile(name, "not yet", "no image is measured: task=exposure again")
    if max(row.get("bias") or 0.0 for row in rows) > UNLIKE:
        return _tile(name, "cannot say", "the linearised run is unlike the real one (bias)")
    first, determined = rows[0], images_determined(found)
    if not determined:
        return _tile(
            name, "nothing", f"the weights say nothing of any image, of {len(rows)}{_so_far(found)}"
        )
    note = (
        f"images told of{_so_far(found)}; most of {first['image']}: {100 * first['share']:.0f} % "
        f"of it, PSNR ≤ {first['psnr_bound']:.0f} dB (no weights: {floor:.0f})"
    )
    return _tile(name, f"{determined} of {len(rows)}", note)


def _so_far(found: Mapping[str, Any]) -> str:
    """A word of warning where not all images are measured yet."""
    return "" if found.get("status") == "finished" else " so far"
