"""A sweep for a person: its figures against what was swept, and an index of its galleries."""

from __future__ import annotations

import html
import io
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simudy.analysis.page import page
from simudy.files import write_atomically
from simudy.pictures import png_of

Row = tuple[
    Mapping[str, str], Mapping[str, Any]
]  # what was said of a job, {key: value as text}, and its figures
Rows = Sequence[Row]
# Figure: how a person reads it, and which is better. A distance is what an attacker can see; scores
# need the secret.
METRICS: dict[str, tuple[str, Callable[..., Any]]] = {
    "ssim_paper": ("SSIM, the paper's protocol", max),
    "m_lin": ("M_lin", max),
    "auc": ("membership, AUC", max),
    "distance": ("distance", min),
}
REPLICATE = "seed"  # averaged over, not plotted against


def save_plot(path: Path, rows: Rows, keys: Sequence[str]) -> bool:
    """Write a PNG with a panel for each figure of ``METRICS`` that there is: a line against one
    swept key, a heat map over two. Of more keys the two with most values are shown, and each cell
    is the mean over the rest, as over seeds.

    Args:
        rows: one per finished job.
        keys: what was swept; every row says all of them.

    Returns:
        Whether there was anything to draw.
    """
    metrics, shown = _drawn(rows, keys)
    if not metrics or not shown:
        return False
    write_atomically(path, png_of(_figure(metrics, rows, shown), dpi=110))
    return True


def _drawn(rows: Rows, keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """The figures that any row has, and the keys to plot them against."""
    metrics = [name for name in without_yardsticks(keys) if any(_has(row, name) for row in rows)]
    return metrics, _shown(rows, keys)


def _figure(metrics: Sequence[str], rows: Rows, shown: Sequence[str]) -> Figure:
    figure = Figure(figsize=(5.5 * len(metrics), 4.2), layout="constrained")
    axes: Any = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, name in zip(axes, metrics, strict=True):
        panel.set_title(METRICS[name][0])
        (_line if len(shown) == 1 else _heat_map)(
            panel, [row for row in rows if _has(row, name)], name, shown
        )
    return figure


def without_yardsticks(keys: Sequence[str]) -> dict[str, tuple[str, Callable[..., Any]]]:
    """The figures that compare across a sweep: a distance does not where the kind of distance was
    swept.
    """
    return {name: metric for name, metric in METRICS.items() if name not in keys}


def _shown(rows: Rows, keys: Sequence[str]) -> list[str]:
    """The keys to plot against: at most two."""
    counts = {key: len({said[key] for said, _ in rows}) for key in keys if key != REPLICATE}
    counts = {key: count for key, count in counts.items() if count > 1} or {
        k: 2 for k in keys if k == REPLICATE
    }
    most = sorted(counts, key=lambda key: -counts[key])[:2]
    return [key for key in keys if key in most]


def _has(row: Row, name: str) -> bool:
    value = row[1].get(name)
    return value is not None and math.isfinite(value)


def _line(axes: Axes, rows: Rows, name: str, shown: Sequence[str]) -> None:
    (key,) = shown
    values = _values(rows, key)
    means = [_mean(rows, name, {key: value}) for value in values]
    numbers = [_number(value) for value in values]
    numeric = None not in numbers
    places: list[Any] = numbers if numeric else list(range(len(values)))
    at = dict(zip(values, places, strict=True))
    axes.plot(
        places,
        means,
        marker="o" if numeric else "",
        linestyle="-" if numeric else "",
        color="#12805c",
    )
    axes.plot(
        [at[said[key]] for said, _ in rows],
        [found[name] for _, found in rows],
        "o",
        color="#a3abb5",
        ms=4,
        zorder=1,
    )
    if not numeric:
        axes.bar(places, means, color="#12805c", width=0.6, zorder=0)
        axes.set_xticks(places, values, rotation=30, ha="right")
    elif min(places) > 0 and max(places) / min(places) >= 20:
        axes.set_xscale("log")
    axes.set_xlabel(key)


def _heat_map(axes: Axes, rows: Rows, name: str, shown: Sequence[str]) -> None:
    down, across = shown
    ys, xs = _values(rows, down), _values(rows, across)
    cells = np.array([[_mean(rows, name, {down: y, across: x}) for x in xs] for y in ys])
    image = axes.imshow(
        cells, cmap="viridis" if METRICS[name][1] is max else "viridis_r", aspect="auto"
    )
    middle = np.nanmean(cells) if np.isfinite(cells).any() else 0.0
    for (i, j), value in np.ndenumerate(cells):
        dark = (value < middle) == (METRICS[name][1] is max)
        text = "–" if np.isnan(value) else f"{value:.3g}"
        colour = "black" if text == "–" else "white" if dark else "#111111"  # black is the page's
        axes.text(j, i, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(xs)), xs)
    axes.set_yticks(range(len(ys)), ys)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.figure.colorbar(image, ax=axes)


def _mean(rows: Rows, name: str, where: Mapping[str, str]) -> float:
    values = [
        found[name]
        for said, found in rows
        if all(said[key] == value for key, value in where.items())
    ]
    return statistics.fmean(values) if values else math.nan


def _values(rows: Rows, key: str) -> list[str]:
    """By size where they are numbers, else as they come."""
    values = list(dict.fromkeys(said[key] for said, _ in rows))
    numbers = {value: _number(value) for value in values}
    return values if None in numbers.values() else sorted(values, key=lambda value: numbers[value])  # type: ignore


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def _svg(figure: Figure) -> str:
    """With text as text and without a ground; what is black takes the colour of the page's text."""
    FigureCanvasAgg(figure)
    content = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "simudy"}):
        figure.savefig(content, format="svg", transparent=True, metadata=_NO_METADATA)
    text = content.getvalue()
    text = re.sub(r"(stroke|fill): ?#000000", r"\1: currentColor", text[text.index("<svg") :])
    return re.sub(r"<text ", '<text fill="currentColor" ', text)


def panels(rows: Rows, keys: Sequence[str]) -> list[str]:
    """The panels of ``save_plot`` as SVG, each on its own, in the colours of the page around."""
    metrics, shown = _drawn(rows, keys)
    return [_svg(_figure([name], rows, shown)) for name in metrics] if shown else []


def save_index(
    path: Path,
    cards: Sequence[tuple[str, str, str, Mapping[str, Any]]],
    *,
    plots: Sequence[str] = (),
) -> None:
    """Write an HTML page that lies beside the jobs' directories and shows their galleries, best
    first.

    Args:
        cards: ``(directory, settings in words, status, result)`` of every job.
        plots: SVG of ``panels``.
    """
    ordered = sorted(cards, key=lambda card: -(card[3].get("ssim_paper") or -1.0))
    drawn = "".join(f'<div class="plot">{plot}</div>' for plot in plots)
    jobs = "\n".join(_card(path.parent, *card) for card in ordered)
    body = f'<p><a href="summary.csv">summary.csv</a></p>\n<div class="plots">{drawn}</div>\n{jobs}'
    write_atomically(path, page(f"{len(cards)} jobs", body, RULES).encode())


def _card(root: Path, job: str, words: str, status: str, result: Mapping[str, Any]) -> str:
    figures = [
        f"{label} {result[name]:.4f}"
        for name, (label, _) in METRICS.items()
        if result.get(name) is not None
    ]
    floor = (result.get("floor") or {}).get("heldout")
    figures += [f"held-out floor {floor:.4f}"] if floor is not None else []
    there = {
        name: f"{quote(job)}/{name}"
        for name in ("gallery.png", "gallery.html", "report.html")
        if (root / job / name).exists()
    }
    links = [
        f'<a href="{there[name]}">{name.partition(".")[0]}</a>'
        for name in ("gallery.html", "report.html")
        if name in there
    ]
    facts = html.escape(" · ".join([status, *figures, job]))
    return (
        f"<section><h2>{html.escape(words)}</h2>\n<p>{facts}</p>"
        f"<p>{' · '.join(links)}</p>{_preview(there)}</section>"
    )


def _preview(there: Mapping[str, str]) -> str:
    """The picture, which leads to the page where it can be read on a small screen."""
    if "gallery.png" not in there:
        return ""
    picture = f'<img loading="lazy" src="{there["gallery.png"]}" alt="gallery">'
    leads = there.get("gallery.html")
    return f'<a href="{leads}">{picture}</a>' if leads else picture


RULES = """\
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 17px; margin: 0; overflow-wrap: anywhere }
a { color: var(--accent) } p { color: var(--soft); margin: 2px 0 6px; overflow-wrap: anywhere }
section, .plot { background: var(--card); border: 1px solid var(--line); border-radius: 12px }
section { padding: 14px 16px; margin-top: 14px }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr));
  gap: 14px }
.plot { padding: 8px } .plot svg { display: block; width: 100%; height: auto }
img { display: block; width: 100%; border-radius: 6px }
@media (prefers-color-scheme: dark) { img { filter: brightness(0.85) } }
"""
