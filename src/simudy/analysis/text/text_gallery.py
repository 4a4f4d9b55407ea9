"""Texts in place of pictures: every true one above what was read for it, best first, with its share
of tokens right. All of it is in ``tokens`` of ``result.json`` (see ``score_tokens``).
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simudy.analysis.gallery import (
    ACCENT,
    FOOTER,
    HEADER,
    INK,
    LINE,
    MARGIN,
    NARROWEST,
    SOFT,
    Sheet,
    draw_bar,
    draw_header,
)
from simudy.analysis.gallery_page import BAR_RULES, RULES, bar
from simudy.analysis.page import page
from simudy.analysis.report.conclusion import highest_floor
from simudy.files import write_atomically

Tokens = Mapping[str, Any]
FLOORS = {"heldout": "held-out texts", "most_frequent": "the most frequent token"}
NOTE = (
    "True above, read below, best first; wrong characters on a ground. Bar: share of tokens right"
)
LONGEST = 64  # characters of a line
_SIZE, _WIDE, _ROW, _SIDE = 20, 12.1, 28, 320  # pixels: of a letter, its advance, a line, the bar


def save_text_gallery(
    path: Path, tokens: Tokens, *, title: str, verdicts: Sequence[str] = ()
) -> None:
    """Write a PNG, atomically.

    Args:
        path: the file; its folder exists.
        tokens: what ``score_tokens`` said.
        title: the headline.
        verdicts: one word for each reconstruction, told beside it; or none.
    """
    side = MARGIN + 100 + min(max(map(len, tokens["true"])), LONGEST) * _WIDE
    width = max(NARROWEST, int(side + _SIDE + MARGIN))
    height = sum(_height(true) for true in tokens["true"])
    sheet = Sheet(width, HEADER + height + FOOTER)
    colour = ACCENT if tokens["right"] > (highest_floor(tokens) or 0.0) else SOFT
    draw_header(
        sheet,
        title,
        f"{tokens['right']:.3f} of tokens right",
        colour,
        [f"floor: {said}" for said in _floors(tokens)],
    )
    y = HEADER
    for i in best_first(tokens):
        draw_bar(sheet, side, y + 4, 200, tokens["each"][i], highest_floor(tokens) or 0.0)
        sheet.text(verdict_on(tokens, verdicts, i), side + 215, y + 32, 14, SOFT)
        _draw_pair(sheet, y, tokens["true"][i], tokens["read"][i])
        y += _height(tokens["true"][i])
    sheet.text(f"{NOTE}; the tick marks the highest floor.", MARGIN, sheet.height - 30, 17, SOFT)
    write_atomically(path, sheet.png())


def save_text_page(path: Path, tokens: Tokens, *, title: str, verdicts: Sequence[str] = ()) -> None:
    """Write a self-contained HTML page, atomically.

    Args:
        path, tokens, title, verdicts: as ``save_text_gallery`` takes them.
    """
    words = [
        f"{tokens['right']:.3f} of tokens right; floors: {', '.join(_floors(tokens))}",
        f"{NOTE}; the tick marks the highest floor.",
    ]
    head = "".join(f"<p>{html.escape(line)}</p>\n" for line in words)
    body = f'{head}<div class="texts">\n{text_figures(tokens, verdicts)}</div>'
    write_atomically(path, page(title, body, RULES + BAR_RULES + TEXT_RULES).encode())


def text_figures(tokens: Tokens, verdicts: Sequence[str] = ()) -> str:
    """HTML figures, for a ``<div class="texts">`` under ``TEXT_RULES``."""
    floor = highest_floor(tokens) or 0.0
    return "".join(
        _figure(tokens, i, floor, verdict_on(tokens, verdicts, i)) for i in best_first(tokens)
    )


def best_first(tokens: Tokens) -> list[int]:
    """The true texts, by their shares of tokens right."""
    return sorted(range(len(tokens["true"])), key=lambda i: -tokens["each"][i])


def verdict_on(tokens: Tokens, verdicts: Sequence[str], true: int) -> str:
    """The word on what was read for a true text, if any."""
    found: int = tokens["candidates"][true]
    return verdicts[found] if 0 <= found < len(verdicts) else ""


def marked(true: str, read: str) -> str:
    """HTML of what was read, wrong characters marked."""
    runs = (
        html.escape(run) if right else f"<mark>{html.escape(run)}</mark>"
        for right, run in _runs(true, read)
    )
    return "".join(runs) or "<i>no candidate left</i>"


def _runs(true: str, read: str) -> Iterator[tuple[bool, str]]:
    """What was read in pieces that are right, or wrong, throughout."""
    begun = 0
    alike = [one == other for one, other in zip(true, read, strict=False)]
    for k in range(1, len(alike) + 1):
        if k == len(alike) or alike[k] != alike[begun]:
            yield alike[begun], read[begun:k]
            begun = k


def _floors(tokens: Tokens) -> list[str]:
    return [f"{FLOORS[k]} {v:.3f}" for k, v in tokens["floor"].items() if v is not None]


def _figure(tokens: Tokens, i: int, floor: float, verdict: str) -> str:
    true, read, right = (tokens[key][i] for key in ("true", "read", "each"))
    told = f" · {html.escape(verdict)}" if verdict else ""
    return (
        f"<figure><pre>{html.escape(true)}</pre><pre>{marked(true, read)}</pre>"
        f"{bar(right, floor)}<figcaption>{right:.3f}{told}</figcaption></figure>\n"
    )


def _height(true: str) -> int:
    """Pixels that a pair takes in the PNG."""
    return 2 * _ROW * -(-len(true) // LONGEST) + 26


def _draw_pair(sheet: Sheet, y: float, true: str, read: str) -> None:
    for start in range(0, len(true), LONGEST):
        part = slice(start, start + LONGEST)
        _draw_line(sheet, "true", y, [(True, true[part])], INK)
        _draw_line(sheet, "read", y + _ROW, _runs(true[part], read[part]), ACCENT)
        y += 2 * _ROW


def _draw_line(
    sheet: Sheet, name: str, y: float, runs: Iterable[tuple[bool, str]], colour: str
) -> None:
    sheet.text(name, MARGIN, y + 18, 15, SOFT)
    x = MARGIN + 60
    for right, run in runs:
        for letter in run:
            if not right:
                sheet.box(x, y, _WIDE, _ROW - 4, LINE)
            ink = colour if right else INK
            sheet.text(letter, x, y + 18, _SIZE, ink, family="DejaVu Sans Mono")
            x += _WIDE


TEXT_RULES = """\
.texts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr));
  gap: 14px; margin-top: 18px }
.texts figure { margin: 0; padding: 10px 12px; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; min-width: 0 }
.texts pre { margin: 0; font: 17px/1.6 "DejaVu Sans Mono", ui-monospace, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere }
td.texts { margin: 0; gap: 0 14px }
mark { background: var(--line); color: inherit; box-shadow: inset 0 -2px var(--second) }
.texts figcaption { font-variant-numeric: tabular-nums }
"""
