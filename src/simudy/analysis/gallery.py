"""The picture of a run: every true image above its reconstruction, best first.

Drawn in pixel coordinates, so that images are enlarged by whole factors and never resampled. Under
each pair a bar shows its SSIM with a tick at the highest floor: green beyond the tick was read out
of the weights, grey was not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from simudy.analysis.pairing import UNMATCHED
from simudy.analysis.score import RECOVERED, Normalisation, Pair, Score
from simudy.analysis.verdicts import UNSUPPORTED
from simudy.files import write_atomically
from simudy.pictures import as_bytes, png_of

INK, SOFT, LINE, ACCENT, DULL = "#1b1f24", "#5b6470", "#e4e7eb", "#12805c", "#a3abb5"
DPI = 100
MARGIN, GUTTER, GAP, SEAM, CAPTION, HEADER, FOOTER = 48, 34, 14, 4, 60, 172, 56  # pixels
FLOORS = {
    "heldout": "held-out images",
    "noise": "noise",
    "class_mean": "class means",
}  # as a person reads them
COLUMNS, NARROWEST = 10, 1140  # images per row at most; width that the headline needs


def save_gallery(
    path: Path,
    truth: Tensor | None,
    reconstruction: Tensor,
    score: Score | None,
    *,
    normalisation: Normalisation | None,
    title: str,
    verdicts: Sequence[str] = (),
) -> None:
    """Write a PNG, atomically.

    Args:
        path: the file; its folder exists.
        truth: (n, c, h, w) normalised; None, with `score` None, draws the reconstructions alone.
        reconstruction: (m, c, h, w) normalised. Pairs and their figures follow the paper's pairing
            in `score`.
        score: what ``score`` said of the two; None without a truth.
        normalisation: brings images back to pixels, clipped to [0, 1]; None if they are pixels
            already.
        title: the headline.
        verdicts: one word for each reconstruction, told below it; or none.
    """
    shown = enlarge(
        displayable(reconstruction, normalisation),
        count=len(reconstruction if truth is None else truth),
    )
    if truth is None or score is None:
        sheet = _candidates(shown, title, verdicts)
    else:
        real = enlarge(displayable(truth, normalisation), count=len(truth))
        sheet = _pairs(real, shown, score, title, verdicts)
    write_atomically(Path(path), sheet.png())


def displayable(images: Tensor, normalisation: Normalisation | None) -> np.ndarray:
    """(n, c, h, w) normalised -> (n, h, w, 3) bytes. Three channels are RGB; any other number is
    shown as its mean.
    """
    return as_bytes(images if normalisation is None else normalisation.denormalise(images))


def enlarge(images: np.ndarray, *, count: int) -> np.ndarray:
    """Repeat pixels to a legible size, larger when few are shown; images beyond 320 pixels are
    averaged down.
    """
    target = 320 if count <= 2 else 240 if count <= 5 else 160
    side = max(images.shape[1:3])
    if side > 320:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        small = F.interpolate(pixels, scale_factor=target / side, mode="area")
        return small.round().byte().permute(0, 2, 3, 1).numpy()
    factor = max(1, round(target / side))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


class Sheet:
    """A white canvas in pixels, counted from the top left."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def image(self, pixels: np.ndarray, x: int, y: int) -> None:
        self.figure.figimage(pixels, x, self.height - y - pixels.shape[0])

    def text(self, words: str, x: float, y: float, size: int, colour: str = INK, **style) -> None:
        """`y` is the baseline; `size` is in pixels; `style` goes to matplotlib's Text."""
        place = (x / self.width, 1 - y / self.height)
        self.figure.text(
            *place, words, fontsize=size * 72 / DPI, color=colour, parse_math=False, **style
        )

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        corner = (x / self.width, 1 - (y + height) / self.height)
        size = (width / self.width, height / self.height)
        self.figure.add_artist(
            Rectangle(corner, *size, facecolor=colour, transform=self.figure.transFigure)
        )

    def png(self) -> bytes:
        return png_of(self.figure, dpi=DPI)


@dataclass(frozen=True)
class Grid:
    """Where things go: `count` cells of `stack` images each, over as few rows as hold them, evenly
    filled.
    """

    count: int
    height: int  # of one image
    width: int
    stack: int

    @property
    def gutter(self) -> int:
        return GUTTER if self.stack > 1 else 0  # room for the words beside a stack

    @property
    def rows(self) -> int:
        return -(-self.count // COLUMNS)

    @property
    def columns(self) -> int:
        return -(-self.count // self.rows)

    @property
    def pitch(self) -> int:
        return self.stack * (self.height + SEAM) + CAPTION

    def corner(self, i: int) -> tuple[int, int]:
        row, column = divmod(i, self.columns)
        return MARGIN + self.gutter + column * (self.width + GAP), HEADER + row * self.pitch

    def sheet(self) -> Sheet:
        needed = 2 * MARGIN + self.gutter + self.columns * (self.width + GAP) - GAP
        return Sheet(max(needed, NARROWEST), HEADER + self.rows * self.pitch + FOOTER)


def _pairs(
    truth: np.ndarray, shown: np.ndarray, score: Score, title: str, verdicts: Sequence[str]
) -> Sheet:
    grid = Grid(len(truth), *truth.shape[1:3], stack=2)
    sheet = grid.sheet()
    draw_header(
        sheet,
        title,
        f"SSIM {score.ssim_paper:.4f}",
        ACCENT if score.above_floor else SOFT,
        _summary(score),
    )
    best_first = sorted(range(len(truth)), key=lambda i: -score.pairs[i].ssim_paper)
    for place, i in enumerate(best_first):
        pair, corner = score.pairs[i], grid.corner(place)
        _pair(sheet, corner, truth[i], shown, pair, score.highest_floor)
        if verdicts and pair.paper_index != UNMATCHED:
            _verdict(sheet, grid, corner, verdicts[pair.paper_index])
    for row in range(grid.rows):
        _row_labels(sheet, HEADER + row * grid.pitch, grid.height)
    bar = "Bar: SSIM of the pair from 0 to 1 (paper's protocol); the tick marks the highest floor."
    note = f"Best first. {bar}"
    sheet.text(note, MARGIN, sheet.height - 30, 17, SOFT)
    return sheet


def _summary(score: Score) -> Sequence[str]:
    floors = [
        f"{FLOORS[name]} {value:.4f}" for name, value in score.floor.items() if value is not None
    ]
    n = len(score.pairs)
    recovered = f"{round(score.recovered * n)} of {n} recovered (pixel SSIM > {RECOVERED})"
    return [
        f"floors:  {'  ·  '.join(floors)}",
        f"{recovered}  ·  pixel SSIM {score.ssim:.4f}  ·  PSNR {score.psnr:.1f} dB",
    ]


def draw_header(sheet: Sheet, title: str, figure: str, colour: str, lines: Sequence[str]) -> None:
    """The title, and below it the figure that counts, in its colour, with lines beside it."""
    room = sheet.width - 2 * MARGIN
    sheet.text(title, MARGIN, 62, min(32, int(room / (0.62 * max(len(title), 1)))), weight="bold")
    sheet.text(figure, MARGIN, 120, 36, colour, weight="bold")
    for k, line in enumerate(lines):
        sheet.text(line, MARGIN + 0.62 * 36 * len(figure) + 40, 99 + 28 * k, 19, SOFT)


def _pair(
    sheet: Sheet,
    corner: tuple[int, int],
    true: np.ndarray,
    shown: np.ndarray,
    pair: Pair,
    floor: float,
) -> None:
    (x, y), (height, width) = corner, true.shape[:2]
    sheet.image(true, x, y)
    below = y + height + SEAM
    if pair.paper_index == UNMATCHED:
        sheet.box(x, below, width, height, LINE)
        sheet.text("no candidate left", x + width / 2, below + height / 2, 16, SOFT, ha="center")
    else:
        sheet.image(shown[pair.paper_index], x, below)
    draw_bar(sheet, x, below + height + 8, width, pair.ssim_paper, floor)


def draw_bar(sheet: Sheet, x: float, y: float, width: int, value: float, floor: float) -> None:
    """From 0 to 1, with a tick at the floor and the figure below."""
    colour = ACCENT if value > floor else DULL
    sheet.box(x, y, width, 5, LINE)
    sheet.box(x, y, width * min(max(value, 0.0), 1.0), 5, colour)
    sheet.box(x + width * min(max(floor, 0.0), 1.0) - 1, y - 2, 2, 9, INK)
    sheet.text(
        f"{value:.3f}", x + width / 2, y + 28, 20, INK if value > floor else SOFT, ha="center"
    )


def _verdict(sheet: Sheet, grid: Grid, corner: tuple[int, int], verdict: str) -> None:
    """The word below a stack of images and what else is told of it."""
    colour = SOFT if verdict == UNSUPPORTED else ACCENT
    below = corner[1] + grid.pitch - CAPTION + 50
    size = min(14, grid.width // 6)  # eleven letters, and no neighbour's
    sheet.text(verdict, corner[0] + grid.width / 2, below, size, colour, ha="center")


def _row_labels(sheet: Sheet, y: int, height: int) -> None:
    for k, word in enumerate(("true", "reconstructed")):
        middle = y + k * (height + SEAM) + height / 2
        sheet.text(word, MARGIN + 12, middle, 17, SOFT, rotation=90, ha="center", va="center")


def _candidates(shown: np.ndarray, title: str, verdicts: Sequence[str]) -> Sheet:
    grid = Grid(len(shown), *shown.shape[1:3], stack=1)
    sheet = grid.sheet()
    lines = ["There is no secret here to compare them with,", "so there is no score: judge by eye."]
    draw_header(sheet, title, f"{len(shown)} reconstructed", INK, lines)
    for i, image in enumerate(shown):
        x, y = grid.corner(i)
        sheet.image(image, x, y)
        sheet.text(f"{i}", x + grid.width / 2, y + grid.height + 24, 17, SOFT, ha="center")
        if verdicts:
            _verdict(sheet, grid, (x, y), verdicts[i])
    return sheet
