"""The bound of every image, the most exposed first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from simudy.files import write_atomically
from simudy.pictures import png_of


def save_exposure_plot(path: Path, rows: Sequence[Mapping[str, Any]], *, floor: float) -> None:
    """Write a PNG.

    Args:
        rows: of ``exposure.json``, ranked.
        floor: PSNR of knowing nothing.
    """
    with rc_context({"font.size": 9}):
        figure = Figure(figsize=(max(4.0, 0.25 * len(rows)), 3.2), layout="constrained")
        axes = figure.subplots()
        bounds, places = [row["psnr_bound"] for row in rows], range(len(rows))
        heights = [bound - floor for bound in bounds]
        axes.bar(places, heights, bottom=floor, yerr=[row["error"] for row in rows])
        axes.axhline(floor, color="black", linewidth=1)
        axes.set_xticks(places, [str(row["image"]) for row in rows], rotation=90)
        axes.set_xlabel("image")
        axes.set_ylabel("PSNR of any attack, at most (dB)")
        content = png_of(figure)
    write_atomically(path, content)
