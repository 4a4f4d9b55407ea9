"""Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Send Ctrl-C and SIGTERM to ``handler``, where this is the main thread and may be asked."""
    try:
        old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        old = {}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


def interrupt(number: int, frame: FrameType | None) -> None:
    """End at once, through every ``finally``."""
    raise KeyboardInterrupt
