"""One process at a time in a run's directory; a second one is told who is there."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from simudy import stopping
from simudy.errors import SimudyError
from simudy.files import write_atomically

log = logging.getLogger(__name__)


@contextmanager
def held(root: Path, *, wait: bool) -> Iterator[None]:
    """Have the directory ``root`` for oneself; whatever ends the process gives it back.

    Args:
        wait: until it is free, as a job of a sweep does; otherwise refuse.

    Raises:
        SimudyError: another process is there, and this one is not to wait.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock, note = FileLock(root / ".lock"), root / ".holder"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = f"{root} is in use by {_holder(note)}"
        if not wait:
            raise SimudyError(f"{who}: wait for it, or set another hydra.run.dir") from error
        log.info("%s: waiting for it", who)
        _wait_for(lock)
    try:
        write_atomically(note, _self().encode())
        yield
    finally:
        lock.release()


def _wait_for(lock: FileLock) -> None:
    while not lock.is_locked:
        stopping.check()
        try:
            lock.acquire(timeout=1)
        except Timeout:
            continue


def _self() -> str:
    return f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def _holder(note: Path) -> str:
    try:
        return note.read_text()[:200]
    except (OSError, UnicodeError):  # it has only just begun
        return "another process"
