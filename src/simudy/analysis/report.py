"""One HTML file that holds a whole run: it loads nothing, so it can be mailed, archived and read
offline.
"""

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from simudy.analysis.gallery import FLOORS, displayable
from simudy.analysis.page import DARK, LIGHT, page
from simudy.analysis.score import RECOVERED, Normalisation, Score
from simudy.files import write_atomically
from simudy.plain import flatten

Row = Mapping[str, object]


def save_report(
    path: Path,
    *,
    title: str,
    settings: Mapping,
    result: Mapping,
    history: Sequence[Row],
    gallery_png: Path,
    filmstrip: Sequence[tuple[int, Tensor]],
    normalisation: Normalisation | None,
    score: Score | None = None,
) -> None:
    """Write a self-contained report.html, atomically.

    Args:
        settings, result: nested mappings, shown as tables with dotted names.
        history: rows with `iteration`, `objective`, `distance`, and `ssim_paper` where it was
            taken; strings, as a CSV reader yields them, will do.
        gallery_png: the picture `save_gallery` wrote.
        filmstrip: (iteration, (k, c, h, w) normalised images) over time, the same k images each
            time.
        score: None when there was no secret to compare with.
    """
    sections = [
        _headline(score, result),
        _section("Against the floor", _floors(score) if score else ""),
        _section(
            "Reconstructions",
            _picture(Path(gallery_png).read_bytes(), "gallery of reconstructions", "card"),
        ),
        _section("Curves", _curves(history, score)),
        _section("How the images came about", _filmstrip(filmstrip, normalisation)),
        _section("Result", _table(result)),
        _section("Settings", _table(settings)),
    ]
    write_atomically(Path(path), page(title, "\n".join(sections), RULES).encode())


def _section(heading: str, content: str) -> str:
    """Empty content leaves the section out."""
    return f"<section><h2>{html.escape(heading)}</h2>\n{content}\n</section>" if content else ""


# The headline
# ------------------------------------------------------------


def _headline(score: Score | None, result: Mapping) -> str:
    figures = [*_score_figures(score), *_run_figures(result)]
    tiles = "".join(
        f'<div class="tile"><b>{value}</b><span>{html.escape(name)}</span></div>'
        for name, value in figures
    )
    return f'<p class="verdict">{_verdict(score)}</p>\n<div class="tiles">{tiles}</div>'


def _verdict(score: Score | None) -> str:
    if score is None:
        return (
            "There was no secret to compare with, so there is no score: judge the pictures by eye."
        )
    floor = f"{score.highest_floor:.4f}, the best of what saw no weights"
    figures = f"SSIM {score.ssim_paper:.4f} against {floor}"
    if score.above_floor:
        return f'<span class="good">Above every floor</span>: {figures}.'
    verdict = "These images were not read out of the weights."
    return f'<span class="poor">Not above chance</span>: {figures}. {verdict}'


def _score_figures(score: Score | None) -> list[tuple[str, str]]:
    if score is None:
        return []
    n = len(score.pairs)
    return [
        ("SSIM, the paper's protocol", f"{score.ssim_paper:.4f}"),
        ("SSIM of pixels", f"{score.ssim:.4f}"),
        ("PSNR", f"{score.psnr:.1f} dB"),
        (f"recovered (pixel SSIM > {RECOVERED})", f"{round(score.recovered * n)} / {n}"),
    ]


def _run_figures(result: Mapping) -> list[tuple[str, str]]:
    names = {
        "distance": "distance",
        "iterations": "iterations",
        "seconds": "seconds",
        "peak_memory_mb": "peak memory, MB",
    }
    return [
        (label, _shown(result[key])) for key, label in names.items() if result.get(key) is not None
    ]


def _floors(score: Score) -> str:
    """One bar per candidate on a common scale from 0 to 1, the attack first."""
    values = {
        "this attack": score.ssim_paper,
        **{FLOORS[name]: value for name, value in score.floor.items()},
    }
    bars = [_bar(name, value) for name, value in values.items() if value is not None]
    others = "images that know nothing of the weights, as many as the attack offered"
    note = f"The paper's protocol applied to {others}."
    return f'<div class="bars">{"".join(bars)}</div>\n<p class="note">{note}</p>'


def _bar(name: str, value: float) -> str:
    width = 100 * min(max(value, 0.0), 1.0)
    bar = f'<div class="track"><i style="width:{width:.2f}%"></i></div>'
    return f"<span>{name}</span>{bar}<b>{value:.4f}</b>"


# The pictures
# ------------------------------------------------------------


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _picture(png: bytes, description: str, kind: str) -> str:
    return f'<img class="{kind}" alt="{html.escape(description)}" src="{_inline(png)}">'


def _filmstrip(filmstrip: Sequence[tuple[int, Tensor]], normalisation: Normalisation | None) -> str:
    """One column per moment, one row per image."""
    frames = "".join(
        _frame(iteration, displayable(images, normalisation)) for iteration, images in filmstrip
    )
    return f'<div class="film">{frames}</div>' if frames else ""


def _frame(iteration: int, images: np.ndarray) -> str:
    shown = "".join(
        _picture(_png(image), f"image {k} at iteration {iteration}", "pixels")
        for k, image in enumerate(images)
    )
    return f"<figure><figcaption>{iteration:,}</figcaption>{shown}</figure>"


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


# The curves
# ------------------------------------------------------------


def _curves(history: Sequence[Row], score: Score | None) -> str:
    """Drawn once for each colour scheme; the browser picks."""
    if not _points(history, "objective"):
        return ""
    light, dark = (_inline(_drawn(history, score, colours)) for colours in (LIGHT, DARK))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img class="plot" alt="objective and SSIM over the iterations" src="{light}"></picture>'
    )


def _points(history: Iterable[Row], key: str) -> list[tuple[float, float]]:
    """(iteration, value) where the row has a finite value; between two takes of the SSIM it has
    none.
    """
    pairs = ((_number(row.get("iteration")), _number(row.get(key))) for row in history)
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _drawn(history: Sequence[Row], score: Score | None, colours: Mapping[str, str]) -> bytes:
    taken = _points(history, "ssim_paper")
    figure = Figure(figsize=(10.4, 3.6), dpi=180, layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if taken else 1, squeeze=False)[0]
    _draw_objective(panels[0], history, colours)
    if taken:
        _draw_ssim(panels[1], taken, score, colours)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_objective(axes: Axes, history: Sequence[Row], colours: Mapping[str, str]) -> None:
    for key, colour in (("objective", colours["accent"]), ("distance", colours["second"])):
        points = [
            (x, y) for x, y in _points(history, key) if y > 0
        ]  # a log axis has no place for the rest
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, label=key)
    axes.set_yscale("log")
    _dress(axes, "objective and distance", colours)


def _draw_ssim(
    axes: Axes, taken: list[tuple[float, float]], score: Score | None, colours: Mapping[str, str]
) -> None:
    axes.plot(
        *zip(*taken, strict=True),
        color=colours["accent"],
        linewidth=1.6,
        marker="o",
        markersize=3,
        label="SSIM",
    )
    if score:
        axes.axhline(
            score.highest_floor,
            color=colours["soft"],
            linestyle="--",
            linewidth=1,
            label="highest floor",
        )
    axes.set_ylim(min(0.0, *(y for _, y in taken)), 1.02)
    _dress(axes, "SSIM, the paper's protocol", colours)


def _dress(axes: Axes, title: str, colours: Mapping[str, str]) -> None:
    axes.set_facecolor("none")
    axes.set_title(title, color=colours["ink"], fontsize=10, loc="left")
    axes.set_xlabel("outer iteration", color=colours["soft"], fontsize=9)
    axes.tick_params(which="both", colors=colours["soft"], labelsize=8, length=0)
    axes.grid(color=colours["line"], linewidth=0.7)
    axes.spines[:].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, labelcolor=colours["soft"], fontsize=8)


# The tables
# ------------------------------------------------------------


def _table(nested: Mapping) -> str:
    cells = (
        (html.escape(key), html.escape(_shown(value))) for key, value in flatten(nested).items()
    )
    rows = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in cells)
    return f"<table>{rows}</table>" if rows else ""


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value)


# The style
# ------------------------------------------------------------


RULES = """\
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 8px; overflow-wrap: anywhere }
h2 { font-size: 17px; margin: 0 0 12px }
section, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px }
section { padding: 20px 24px; margin-top: 20px } .tile { padding: 14px 16px }
.verdict { font-size: 17px; color: var(--soft); margin: 0 0 20px }
.good { color: var(--accent); font-weight: 600 } .poor { color: var(--second); font-weight: 600 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 12px }
.tile b { display: block; font-size: 24px; font-variant-numeric: tabular-nums }
.tile:first-child b { color: var(--accent) }
.tile span, .note, figcaption { color: var(--soft); font-size: 13px } .note { margin: 12px 0 0 }
.bars { display: grid; grid-template-columns: max-content 1fr max-content;
  gap: 8px 14px; align-items: center }
.bars b { font-variant-numeric: tabular-nums; font-weight: 500 }
.track { height: 10px; border-radius: 5px; background: var(--line); overflow: hidden }
.track i { display: block; height: 100%; background: var(--soft) }
.track:nth-of-type(1) i { background: var(--accent) }
img { max-width: 100% } .card { display: block; width: 100%; border-radius: 8px }
.plot { display: block; width: 100% }
.film { display: flex; gap: 8px; overflow-x: auto }
figure { margin: 0; flex: 1 0 72px; max-width: 120px; text-align: center }
.pixels { display: block; width: 100%; margin-top: 6px; border-radius: 4px;
  image-rendering: pixelated }
table { border-collapse: collapse; width: 100%; font-size: 14px }
tr + tr { border-top: 1px solid var(--line) }
th { text-align: left; font-weight: 500; color: var(--soft); width: 34%; padding: 5px 12px 5px 0 }
td { padding: 5px 0; font-variant-numeric: tabular-nums } th, td { overflow-wrap: anywhere }
"""
