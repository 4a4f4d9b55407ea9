"""Files: written whole or not at all, for their owner alone; read with the eyes open."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simudy.errors import SimudyError
from simudy.plain import misfit

TEXT = 64 * 2**20  # bytes: no json, yaml or csv of ours comes near
BINARY = 64 * 2**30


@contextmanager
def private_files() -> Iterator[None]:
    """Directories made in here are 0700, files 0600: they may hold secrets."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def user_path(said: str | Path) -> Path:
    """A path as a person wrote it, with ``~`` resolved.

    Raises:
        SimudyError: no path can be so, or there is no such user.
    """
    if "\0" in str(said):
        raise SimudyError(f"{str(said)!r} is no path: leave the NUL out")
    try:
        return Path(said).expanduser()
    except RuntimeError as error:
        user = Path(said).parts[0]
        raise SimudyError(f"{said}: there is no user {user}: write the path in full") from error


def require_file(path: Path, remedy: str, *, limit: int = BINARY) -> Path:
    """``path``, if it is a regular file of at most ``limit`` bytes.

    A pipe or a device would be waited for without end, so that nothing else is opened.

    Args:
        remedy: what to do where it is not there.

    Raises:
        SimudyError: it is not there, something else, or larger.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise SimudyError(f"no {path.name} in {path.parent}: {remedy}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise SimudyError(f"{path} is {kind}, not a file: {remedy}")
    if found.st_size > limit:
        raise SimudyError(f"{path} holds {found.st_size:,} bytes, more than {limit:,}: {remedy}")
    return path


def read_text(path: Path, remedy: str) -> str:
    """A file of text.

    Raises:
        SimudyError: it is not there, no regular file, too large or not UTF-8.
    """
    content = require_file(path, remedy, limit=TEXT).read_bytes()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SimudyError(f"{path} is damaged (not UTF-8): {remedy}") from error


def read_json(path: Path, shape: Any, remedy: str) -> Any:
    """A json file of the shape that a type hint declares (see ``plain.py``).

    Raises:
        SimudyError: it is not there, damaged, or of another shape.
    """
    try:
        content = json.loads(read_text(path, remedy))
    except (ValueError, RecursionError) as error:
        if isinstance(error, SimudyError):
            raise
        raise SimudyError(f"{path} is damaged (no json): {remedy}") from error
    if wrong := misfit(content, shape, ""):
        raise SimudyError(f"{path} is damaged ({wrong.lstrip('=')}): {remedy}")
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``path`` whole: a kill, or a loss of power, in the middle leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(
        f".{path.name}.{os.getpid()}.tmp"
    )  # jobs of a sweep may write the same cache entry
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)  # a full disk is not helped by half a file
        raise


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    text = json.dumps(without_infinities(content), indent=2, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def without_infinities(content: Any) -> Any:
    """Plain data with null in place of NaN and infinity, which json does not know."""
    if isinstance(content, dict):
        return {k: without_infinities(v) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_infinities(v) for v in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
