"""``history.csv``: one row per outer step."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from simudy.files import write_atomically

COLUMNS: list[str] = ["iteration", "objective", "distance", "seconds", "ssim_paper"]


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows; a column that a row lacks stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def load(path: Path) -> list[dict[str, Any]]:
    """The rows as text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
