"""Where a search stands, on disk: whole or not there, checked when read, and always one more behind
it.

A file is a SHA-256 of the rest, a newline and what ``torch.save`` wrote. A damaged one is told from
a good one by the hash; then the one before it is used. Where both are damaged the search starts
over: it ends at the same place. So it does where another version wrote the file, which is kept.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from simudy.errors import SimudyError
from simudy.files import require_file, write_atomically

log = logging.getLogger(__name__)

FORMAT = 2  # of what a state holds: count up when that changes


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state``, and keep what was there as ``<name>.previous``."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    content = buffer.getvalue()
    if path.exists() and _read(path) is not None:  # a damaged file must not push out a good one
        os.replace(path, previous(path))
    write_atomically(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def load(path: Path) -> dict[str, Any] | None:
    """The latest good state, or None where there is none."""
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        if (content := _read(candidate)) is not None and (state := _loaded(content)) is not None:
            if state.get("format") == FORMAT:
                return state
            set_aside(candidate)
            continue
        log.warning("%s is damaged: using the one before it", candidate)
    if path.exists() or previous(path).exists():
        log.warning("no checkpoint in %s can be read: starting over, to the same end", path.parent)
    return None


def snapshots(state: dict[str, Any]) -> dict[int, Tensor]:
    """Images by iteration.

    Raises:
        TypeError: there are none.
    """
    found = state.get("snapshots")
    if not isinstance(found, dict) or not all(
        isinstance(i, int) and isinstance(shot, Tensor) and shot.ndim == 4
        for i, shot in found.items()
    ):
        raise TypeError("no snapshots")
    return found


def set_aside(path: Path) -> None:
    """Keep a checkpoint that this version cannot use under another name, and say so."""
    kept = path.with_name(f"{path.name}.other-version")
    os.replace(path, kept)
    log.warning("%s is of another version of simudy: starting over; it is kept as %s", path, kept)


def previous(path: Path) -> Path:
    """The checkpoint before the latest."""
    return path.with_name(f"{path.name}.previous")


def _read(path: Path) -> bytes | None:
    """What a file holds, or None if it is damaged."""
    try:
        whole = require_file(path, "remove it").read_bytes()
    except SimudyError as error:
        log.warning("%s", error)
        return None
    seal, _, content = whole.partition(b"\n")
    return content if hashlib.sha256(content).hexdigest().encode() == seal else None


def _loaded(content: bytes) -> dict[str, Any] | None:
    try:
        state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except (RuntimeError, UnpicklingError, ValueError, EOFError, KeyError, TypeError, OSError):
        return None
    return state if isinstance(state, dict) else None
