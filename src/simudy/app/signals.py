"""Ctrl-C and SIGTERM: the first sets a flag that every loop reads, the second ends at once.

No handler raises while a network trains: the exception would land wherever Python happens to be,
in a callback that swallows it too. Every file is written whole or not at all, so that even the
second loses no more than what was computed since the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from simudy import stopping

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_launching = False
_INTERRUPTED = b"\nsimudy: interrupted\n"
_last_words = _INTERRUPTED


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM ask to stop, where this is the main thread and may be told."""
    if signal.getsignal(signal.SIGINT) is _ask:  # a job within a command: that listens already
        yield
        return
    stopping.forget()
    last_words("simudy: interrupted")
    try:
        old = {number: signal.signal(number, _ask) for number in SIGNALS}
    except ValueError:  # not the main thread
        old = {}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
        stopping.forget()
        only_launching(False)


def only_launching(yes: bool) -> None:
    """This process trains nothing itself, it waits for workers: a signal raises here."""
    global _launching
    _launching = yes


def _ask(number: int, frame: FrameType | None) -> None:
    if _launching:
        raise KeyboardInterrupt
    if stopping.is_asked():
        leave_at_once(number, frame)
    stopping.ask_to_stop()
    if _last_words == _INTERRUPTED:  # else it is ending already, and said why or will
        _say(b"\nstopping after this step; once more stops at once\n")


def leave_at_once(number: int, frame: FrameType | None) -> None:
    """End the process here and now, as a handler."""
    _say(_last_words)
    os._exit(INTERRUPTED)


def last_words(line: str | None) -> None:
    """What a signal that ends the process says: why it was ending anyway, if it was; None: that is
    said already.
    """
    global _last_words
    _last_words = b"" if line is None else f"\n{line}\n".encode()


def _say(words: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(2, words)
