"""One HTML file that holds a whole run: it loads nothing, so it can be mailed, archived, printed
and read offline. ``report.json`` beside it holds the same words and figures, for programs.

Both are made of one mapping, the *content*; ``report.html.j2`` lays it out and adds the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from simudy.analysis.gallery import FLOORS, displayable
from simudy.analysis.gallery_page import BAR_RULES, GALLERY_RULES, figures_of
from simudy.analysis.page import colours
from simudy.analysis.report.conclusion import conclude, judged
from simudy.analysis.report.curves import Row, curves
from simudy.analysis.report.risk import most_at_risk
from simudy.analysis.report.tiles import tiles
from simudy.analysis.score import Normalisation, Score
from simudy.analysis.text.text_gallery import FLOORS as FLOORS_OF_TEXTS
from simudy.analysis.text.text_gallery import TEXT_RULES, text_figures
from simudy.analysis.verdicts import ALIKE, MEANING
from simudy.files import write_atomically, write_json
from simudy.pictures import inline_png
from simudy.plain import flatten

CAUTIONS = (
    "A search that finds nothing shows that this search, at this cost, found nothing.",
    "Without a prior there are many wrong images that explain the weights as well as the right "
    "ones: a good fit alone is no evidence for a picture.",
    "Searches from other noise can find plausible images that nobody trained on; a verdict of "
    "unsupported says nothing for an image, however sharp it looks.",
    "SSIM and PSNR follow human judgement weakly: look at the pictures too.",
)


def save_report(
    path: Path,
    *,
    title: str,
    settings: Mapping[str, Any],
    result: Mapping[str, Any],
    history: Sequence[Row],
    truth: Tensor | None,
    reconstruction: Tensor,
    filmstrip: Sequence[tuple[int, Tensor | Sequence[str]]],
    normalisation: Normalisation | None,
    score: Score | None = None,
    told: Mapping[str, Any] | None = None,
) -> None:
    """Write a self-contained ``report.html``, and ``report.json`` beside it, each atomically.

    Args:
        settings, result: nested mappings, shown as tables with dotted names; ``result`` is what
            ``result.json`` holds.
        history: see ``curves``.
        truth, reconstruction: normalised ``(n, c, h, w)`` and ``(m, c, h, w)``; no truth, no score.
        filmstrip: (iteration, (k, c, h, w) normalised images, or k texts) over time, the same k
            each time.
        score: None when there was no secret to compare with.
        told: what else is known of the run (see ``content_of``).
    """
    content = content_of(title, result, score, told or {})
    shown, tokens = displayable(reconstruction, normalisation), result.get("tokens")
    verdicts, names = result.get("verdicts") or (), (told or {}).get("names") or ()
    pictures = (truth, reconstruction, score, normalisation, verdicts, names)
    page = _template().render(
        content=content,
        style=Markup(colours() + BAR_RULES + GALLERY_RULES + TEXT_RULES + _beside("report.css")),
        faces=[inline_png(shown[image["image"]]) for image in content["at_risk"]],
        bars=_bars(score, tokens),
        gallery=Markup(text_figures(tokens, verdicts) if tokens else figures_of(*pictures)),
        curves=curves(history, judged(result).floor if score else None),
        film=[(iteration, _frames(shots, normalisation)) for iteration, shots in filmstrip],
        flat_result={k: v for k, v in flatten(result).items() if _is_told_here(k)},
        flat_settings=flatten(settings),
    )
    write_json(path.with_suffix(".json"), {**content, "result": result, "settings": settings})
    write_atomically(path, page.encode(errors="replace"))


def content_of(
    title: str, result: Mapping[str, Any], score: Score | None, told: Mapping[str, Any]
) -> dict[str, Any]:
    """All words and figures of the report, as plain data.

    Args:
        told: any of ``knowledge`` and ``compute`` (mappings), ``attacks`` (mappings, this one
            first), ``read`` and ``assumed`` (sentences), ``agreement``, ``membership``,
            ``exposure``, ``diagnosis`` (as the files of these names hold them), ``began`` (the
            distance at first) and ``names`` of the true images.
    """
    agreement = told.get("agreement")
    others = {key: told.get(key) for key in ("agreement", "membership", "exposure", "began")}
    found = conclude(result, **others)
    return {
        "title": title,
        "texts": "tokens" in result,
        "answer": found.answer,
        "why": found.why,
        "figures": tiles(result, told),
        "floor": judged(result).floor,
        "at_risk": most_at_risk(result, score, told),
        "advice": found.advice,
        "assumed": list(told.get("assumed", ())),
        "read": list(told.get("read", ())),
        "verdict_counts": dict(result.get("verdict_counts") or {}),
        "meaning": MEANING,
        "agreement": _in_words(agreement),
        "knowledge": dict(told.get("knowledge", {})),
        "attacks": [dict(attack) for attack in told.get("attacks", ())],
        "compute": dict(told.get("compute", {})),
        "diagnosis": told.get("diagnosis"),
        "cautions": list(CAUTIONS),
    }


# by image, with the pictures
_TOLD_ELSEWHERE = ("verdicts", "certificates", "images")
_TOLD_ELSEWHERE += tuple(f"tokens.{key}" for key in ("true", "read", "candidates", "each"))


def _is_told_here(key: str) -> bool:
    return not any(key == other or key.startswith(f"{other}.") for other in _TOLD_ELSEWHERE)


def _frames(shots: Tensor | Sequence[str], normalisation: Normalisation | None) -> list[str]:
    """Addresses that hold pictures; texts as they are."""
    if not isinstance(shots, Tensor):
        return list(shots)
    return [inline_png(image) for image in displayable(shots, normalisation)]


def _in_words(agreement: Mapping[str, Any] | None) -> str | None:
    if agreement is None:
        return None
    return (
        f"Consistent: compared with {len(agreement['searches'])} other searches "
        f"({', '.join(agreement['searches'])}); an angle with cosine above "
        f"{agreement['threshold']:.3f} counts, which {100 * agreement['false_rate']:g} % of "
        f"{agreement['unrelated']} unrelated pairs exceed, where SSIM with the partner is "
        f"{ALIKE:g} or more in each."
    )


def _bars(score: Score | None, tokens: Mapping[str, Any] | None) -> dict[str, float]:
    """One per candidate on a common scale from 0 to 1, the attack first."""
    if tokens:
        floors = {FLOORS_OF_TEXTS[k]: v for k, v in tokens["floor"].items() if v is not None}
        return {"this attack": tokens["right"], **floors}
    if score is None:
        return {}
    floors = {FLOORS[name]: value for name, value in score.floor.items() if value is not None}
    return {"this attack": score.ssim_paper, **floors}


def _template():
    """Escapes all that it is given, and misses nothing silently."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"shown": shown, "percent": _percent}
    return environment.from_string(_beside("report.html.j2"))


def _beside(name: str) -> str:
    return files("simudy.analysis.report").joinpath(name).read_text(encoding="utf-8")


def _percent(value: float) -> str:
    return f"{100 * min(max(value, 0.0), 1.0):.2f}"


def shown(value: object) -> str:
    """A value in a table."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown, value))
    return str(value)
