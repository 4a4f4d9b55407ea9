"""A sweep for a person: its figures against what was swept, and an index of its galleries."""

from __future__ import annotations

import html
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simudy.files import write_atomically

Row = tuple[
    Mapping[str, str], Mapping[str, Any]
]  # what was said of a job, {key: value as text}, and its figures
Rows = Sequence[Row]
# Figure: how a person reads it, and which is better. A distance is what an attacker can see; scores
# need the secret.
METRICS: dict[str, tuple[str, Callable[..., Any]]] = {
    "ssim_paper": ("SSIM, the paper's protocol", max),
    "m_lin": ("M_lin", max),
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
    metrics = [name for name in without_yardsticks(keys) if any(_has(row, name) for row in rows)]
    shown = _shown(rows, keys)
    if not metrics or not shown:
        return False
    figure = Figure(figsize=(5.5 * len(metrics), 4.2), layout="constrained")
    panels: Any = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, name in zip(panels, metrics, strict=True):
        axes.set_title(METRICS[name][0])
        (_line if len(shown) == 1 else _heat_map)(
            axes, [row for row in rows if _has(row, name)], name, shown
        )
    write_atomically(path, _png(figure))
    return True


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
        axes.text(
            j, i, text, ha="center", va="center", color="white" if dark and text != "–" else "black"
        )
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


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def save_index(
    path: Path, cards: Sequence[tuple[str, str, str, Mapping[str, Any]]], *, plot: str | None
) -> None:
    """Write an HTML page that lies beside the jobs' directories and shows their galleries, best
    first.

    Args:
        cards: ``(directory, settings in words, status, result)`` of every job.
        plot: name of the plot's file.
    """
    ordered = sorted(cards, key=lambda card: -(card[3].get("ssim_paper") or -1.0))
    picture = f'<img class="plot" src="{plot}" alt="plot">' if plot else ""
    body = "\n".join(_card(path.parent, *card) for card in ordered)
    page = (
        '<!doctype html>\n<html lang="en">\n<head><meta '
        'charset="utf-8"><title>sweep</title>\n<style>'
        "body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 "
        "1rem;color:#1b1f24}"
        "section{border-top:1px solid #e4e7eb;padding:1rem "
        "0}img{max-width:100%}h2{font-size:1.05rem;margin:0}"
        f"p{{color:#5b6470;margin:.2rem 0}}</style></head>\n<body><h1>{len(cards)} jobs</h1>\n"
        f'<p><a href="summary.csv">summary.csv</a></p>\n{picture}\n{body}\n</body>\n</html>\n'
    )
    write_atomically(path, page.encode())


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
        for name in ("gallery.png", "report.html")
        if (root / job / name).exists()
    }
    link = f'<p><a href="{there["report.html"]}">report</a></p>' if "report.html" in there else ""
    image = (
        f'<img loading="lazy" src="{there["gallery.png"]}" alt="gallery">'
        if "gallery.png" in there
        else ""
    )
    facts = html.escape(" · ".join([status, *figures, job]))
    return f"<section><h2>{html.escape(words)}</h2>\n<p>{facts}</p>{link}{image}</section>"
