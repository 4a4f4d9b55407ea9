"""The order of a run's images, out of a file that its script wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from simudy.errors import SimudyError

_NAMED = ("torch", "torch_global")


def load_order(said: Any, where: str) -> Any:
    """``torch``, ``torch_global``, lists of indices, or such lists from a file.

    Args:
        said: a name, a list, or the path of a ``.npy`` or ``.json`` file: one row per epoch or per
            batch.
        where: the key it stands under, for messages.

    Raises:
        SimudyError: the file is missing, or holds no rows of whole numbers.
    """
    if said is None or said in _NAMED:
        return said
    rows = _read(Path(said).expanduser(), where) if isinstance(said, str) else said
    if not isinstance(rows, list) or not rows or not all(_is_row(row) for row in rows):
        raise SimudyError(
            f"{where} holds no rows of image numbers: give one list per epoch or per batch, or "
            f"{' or '.join(_NAMED)}"
        )
    return rows


def _read(path: Path, where: str) -> Any:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False).tolist()
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SimudyError(
            f"{where}={path} cannot be read ({reason}): give a .npy or .json file of image numbers"
        ) from error


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and bool(row) and all(type(i) is int for i in row)
