"""The curves of a run's report, drawn once for each colour scheme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simudy.analysis.page import DARK, LIGHT
from simudy.pictures import inline, png_of

Row = Mapping[str, object]
SCORED = {  # the score over time: its legend, and its title
    "ssim_paper": ("SSIM", "SSIM, the paper's protocol"),
    "tokens_right": ("tokens right", "share of tokens right"),
}


def curves(history: Sequence[Row], highest_floor: float | None) -> dict[str, str]:
    """Pictures as addresses that hold them, ``light`` and ``dark``; empty where there is no curve.

    Args:
        history: rows with ``iteration``, ``objective``, ``distance``, and ``ssim_paper``, or of a
            text ``tokens_right``, where it was taken; strings, as a CSV reader yields them, will
            do.
        highest_floor: drawn beside the score; None: there is none.
    """
    if not _points(history, "objective"):
        return {}
    schemes = {"light": LIGHT, "dark": DARK}
    return {name: inline(_drawn(history, highest_floor, s)) for name, s in schemes.items()}


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


def _drawn(
    history: Sequence[Row], highest_floor: float | None, colours: Mapping[str, str]
) -> bytes:
    key = next((key for key in SCORED if _points(history, key)), "ssim_paper")
    taken = _points(history, key)
    figure = Figure(figsize=(10.4, 3.6), dpi=180, layout="constrained", facecolor="none")
    panels = figure.subplots(1, 2 if taken else 1, squeeze=False)[0]
    _draw_objective(panels[0], history, colours)
    if taken:
        _draw_score(panels[1], SCORED[key], taken, highest_floor, colours)
    return png_of(figure)


def _draw_objective(axes: Axes, history: Sequence[Row], colours: Mapping[str, str]) -> None:
    for key, colour in (("objective", colours["accent"]), ("distance", colours["second"])):
        points = [
            (x, y) for x, y in _points(history, key) if y > 0
        ]  # a log axis has no place for the rest
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, label=key)
    axes.set_yscale("log")
    _dress(axes, "objective and distance", colours)


def _draw_score(
    axes: Axes,
    names: tuple[str, str],
    taken: list[tuple[float, float]],
    highest_floor: float | None,
    colours: Mapping[str, str],
) -> None:
    axes.plot(
        *zip(*taken, strict=True),
        color=colours["accent"],
        linewidth=1.6,
        marker="o",
        markersize=3,
        label=names[0],
    )
    if highest_floor is not None:
        axes.axhline(
            highest_floor,
            color=colours["soft"],
            linestyle="--",
            linewidth=1,
            label="highest floor",
        )
    axes.set_ylim(min(0.0, *(y for _, y in taken)), 1.02)
    _dress(axes, names[1], colours)


def _dress(axes: Axes, title: str, colours: Mapping[str, str]) -> None:
    axes.set_facecolor("none")
    axes.set_title(title, color=colours["ink"], fontsize=10, loc="left")
    axes.set_xlabel("outer iteration", color=colours["soft"], fontsize=9)
    axes.tick_params(which="both", colors=colours["soft"], labelsize=8, length=0)
    axes.grid(color=colours["line"], linewidth=0.7)
    axes.spines[:].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, labelcolor=colours["soft"], fontsize=8)
