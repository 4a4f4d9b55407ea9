"""Files that are whole or not there at all, whatever kills the process while they are written."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``path`` whole: a kill, or a loss of power, in the middle leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(
        f".{path.name}.{os.getpid()}.tmp"
    )  # jobs of a sweep may write the same cache entry
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
