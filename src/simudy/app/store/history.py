"""``history.csv``: one row per outer step."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from simudy.errors import SimudyError
from simudy.files import read_text, write_atomically

COLUMNS: list[str] = ["iteration", "objective", "distance", "seconds", "ssim_paper"]
REMEDY = "run task=reconstruct there, after removing it if it is damaged"


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows; a column that a row lacks stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


class LiveHistory:
    """The file while a search goes on: rows are there as soon as they are known.

    Args:
        known: how many rows an earlier launch came to.
    """

    def __init__(self, path: Path, known: int = 0) -> None:
        self.path, self.known, self.begun = path, known, False

    def add(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Write those of all ``rows`` that are new, and return them."""
        new = rows[self.known :]
        if new and not self.begun:  # what an earlier launch wrote after its last checkpoint goes
            save(self.path, rows)
        elif new:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(new)
        self.begun, self.known = self.begun or bool(new), len(rows)
        return new


def load(path: Path) -> list[dict[str, Any]]:
    """The rows as text.

    Raises:
        SimudyError: the file is missing, or is no table of these columns with a number in each.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, REMEDY), newline=""))
    try:
        if reader.fieldnames != COLUMNS:
            raise SimudyError(f"{path} is damaged (other columns): {REMEDY}")
        rows = list(reader)
        for row in rows:
            _require_numbers(row)
    except (csv.Error, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, SimudyError):
            raise
        raise SimudyError(f"{path} is damaged (line {reader.line_num}): {REMEDY}") from error
    return rows


def _require_numbers(row: dict[str, Any]) -> None:
    if row.keys() != set(COLUMNS):  # more cells than columns
        raise ValueError("cells")
    int(row["iteration"])
    for name in COLUMNS[1:]:
        float(row[name] or "nan")
