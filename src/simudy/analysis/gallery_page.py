"""The picture of a run as a page: every true image above its reconstruction, best first, in as many
columns as the screen has room for. ``gallery.png`` is the same for a paper.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from simudy.analysis.gallery import FLOORS, displayable
from simudy.analysis.page import page
from simudy.analysis.pairing import UNMATCHED
from simudy.analysis.score import RECOVERED, Normalisation, Score
from simudy.files import write_atomically
from simudy.pictures import inline_png


def save_gallery_page(
    path: Path,
    truth: Tensor | None,
    reconstruction: Tensor,
    score: Score | None,
    *,
    normalisation: Normalisation | None,
    title: str,
    verdicts: Sequence[str] = (),
    names: Sequence[str] = (),
) -> None:
    """Write a self-contained HTML page, atomically.

    Args:
        path: the file; its folder exists.
        truth, reconstruction, score, normalisation, title: as ``save_gallery`` takes them.
        verdicts: a word for each reconstruction, told below it; or none.
        names: of the true images, told below them. Default: their numbers, untold.
    """
    words = _words(score) if score else [_NO_SECRET]
    figures = figures_of(truth, reconstruction, score, normalisation, verdicts, names)
    head = "".join(f"<p>{html.escape(line)}</p>\n" for line in words)
    body = f'{head}<div class="gallery">\n{figures}</div>'
    write_atomically(Path(path), page(title, body, RULES + BAR_RULES + GALLERY_RULES).encode())


_NO_SECRET = "There is no secret here to compare them with, so there is no score: judge by eye."


def figures_of(
    truth: Tensor | None,
    reconstruction: Tensor,
    score: Score | None,
    normalisation: Normalisation | None,
    verdicts: Sequence[str],
    names: Sequence[str] = (),
) -> str:
    """HTML figures, for a ``<div class="gallery">`` under ``GALLERY_RULES``."""
    shown = [inline_png(image) for image in displayable(reconstruction, normalisation)]
    if truth is None or score is None:
        told = verdicts or [""] * len(shown)
        return "".join(
            _figure([("reconstructed image", src)], f"{i}", verdict)
            for i, (src, verdict) in enumerate(zip(shown, told, strict=True))
        )
    real = [inline_png(image) for image in displayable(truth, normalisation)]
    return "".join(_pairs(real, shown, score, verdicts, names))


def _words(score: Score) -> list[str]:
    floors = [
        f"{FLOORS[name]} {value:.4f}" for name, value in score.floor.items() if value is not None
    ]
    n = len(score.pairs)
    return [
        f"SSIM {score.ssim_paper:.4f}; floors: {', '.join(floors)}",
        f"{round(score.recovered * n)} of {n} recovered (pixel SSIM > {RECOVERED}); pixel SSIM "
        f"{score.ssim:.4f}; PSNR {score.psnr:.1f} dB",
        "True above, reconstructed below, best first. Bar: SSIM of the pair from 0 to 1 (paper's "
        "protocol); the tick marks the highest floor.",
    ]


def _pairs(
    real: Sequence[str],
    shown: Sequence[str],
    score: Score,
    verdicts: Sequence[str],
    names: Sequence[str],
) -> Iterator[str]:
    for i in sorted(range(len(real)), key=lambda i: -score.pairs[i].ssim_paper):
        pair = score.pairs[i]
        name = html.escape(names[i]) if names else ""
        images = [(f"true image {name or i}", real[i])]
        if pair.paper_index != UNMATCHED:
            images.append(
                (f"its reconstruction, SSIM {pair.ssim_paper:.3f}", shown[pair.paper_index])
            )
        verdict = verdicts[pair.paper_index] if verdicts and len(images) == 2 else ""
        drawn = bar(pair.ssim_paper, score.highest_floor)
        caption = f"{pair.ssim_paper:.3f}" + (f"<br>{name}" if name else "")
        yield _figure(images, caption, verdict, drawn)


def _figure(images: Sequence[tuple[str, str]], caption: str, verdict: str, below: str = "") -> str:
    pictures = "".join(f'<img alt="{alt}" src="{src}">' for alt, src in images)
    told = f"<br>{html.escape(verdict)}" if verdict else ""
    return f"<figure>{pictures}{below}<figcaption>{caption}{told}</figcaption></figure>\n"


def bar(value: float, floor: float) -> str:
    """HTML of a bar from 0 to 1 with a tick at the floor, under ``BAR_RULES``."""
    value, floor = (100 * min(max(v, 0.0), 1.0) for v in (value, floor))
    kind = "above" if value > floor else "below"
    return (
        f'<div class="bar {kind}"><i style="width:{value:.1f}%"></i>'
        f'<b style="left:{floor:.1f}%"></b></div>'
    )


RULES = """\
h1 { font-size: 22px; line-height: 1.25; margin: 0 0 8px; overflow-wrap: anywhere }
p { color: var(--soft); margin: 0 0 4px }
"""
BAR_RULES = """\
.bar { position: relative; height: 5px; background: var(--line); margin: 6px 0 2px }
.bar i { display: block; height: 100%; background: var(--soft) }
.bar.above i { background: var(--accent) }
.bar b { position: absolute; top: -2px; width: 2px; height: 9px; background: var(--ink) }
.below + figcaption { color: var(--soft) }
"""
GALLERY_RULES = """\
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 14px;
  margin-top: 18px }
.gallery figure { margin: 0; padding: 6px; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px }
.gallery img { display: block; width: 100%; image-rendering: pixelated; margin-bottom: 3px }
.gallery figcaption { text-align: center; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere }
"""
