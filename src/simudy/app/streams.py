"""Standard output and error, whatever a person connected them to: a pipe nobody reads, a full
disk, nothing at all, a terminal that knows ASCII alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any


def make_streams_safe() -> None:
    """Before anything is written. A closed stream swallows what it is given, so that no file of
    ours is opened in its place.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    logging.raiseExceptions = False  # a line that cannot be shown stops no run


def say(words: str) -> None:
    """A line on standard error, if there is anyone to read it."""
    with contextlib.suppress(OSError, ValueError):
        print(words, file=sys.stderr, flush=True)


def flush() -> OSError | None:
    """Write out what is held back.

    Returns:
        Why it could not be written, but for a reader who left.
    """
    reason = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            _silence(stream)
            reason = reason if isinstance(error, BrokenPipeError) else error
    return reason


def _silence(stream: Any) -> None:
    """What is left goes nowhere: Python would try once more as it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
