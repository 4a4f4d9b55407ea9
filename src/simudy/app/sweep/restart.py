"""A sweep whose workers are killed, as by the system when memory runs out: the others still run.

A pool of processes that loses one gives up all of its jobs. Those that were at work then are run
once more, each alone. One that is killed alone too has failed; the rest go on together. Which jobs
a launch is about stands in a file of the sweep's directory, for the workers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict

from simudy.errors import SimudyError
from simudy.files import read_json, write_json

log = logging.getLogger(__name__)

BEGUN, ROUND = ".begun", ".round"  # files: of a job at work, of a sweep launched again
REASON = "its process was killed, alone too: perhaps it takes more memory than there is"

_OF_RAY = ("WorkerCrashedError", "OutOfMemoryError")


class Round(TypedDict):
    """What a launch leaves out: jobs by name.

    Attributes:
        alone: all but this one.
        killed: these.
    """

    alone: str | None
    killed: list[str]


_now: Round = {"alone": None, "killed": []}
_sweeps: list[Path] = []  # directories of those launched by this process


def persistently(launch: Callable[[], None], fail: Callable[[Path, str], None]) -> None:
    """Launch a sweep until every job is done, or has failed by itself.

    Args:
        launch: all jobs, of which those that are done return at once.
        fail: notes in a job's directory why it failed.
    """
    try:
        while True:
            try:
                return launch()
            except Exception as error:
                suspects = _begun(_sweeps[-1]) if _sweeps else []
                if not (_is_killed(error) and suspects):
                    raise
                log.warning("a worker was killed: running %d jobs one by one", len(suspects))
                killed = [job for job in suspects if not _survives(job, launch)]
            for job in killed:
                fail(job, REASON)
                _now["killed"].append(job.name)
    finally:
        _now.update(alone=None, killed=[])
        while _sweeps:
            with suppress(OSError):  # no directory, then, and nothing in it
                (_sweeps.pop() / ROUND).unlink(missing_ok=True)


def begin_round(sweep: Path) -> bool:
    """Tell the workers of a launch what it is about, as it starts.

    Returns:
        Whether it is one of several of the same sweep.
    """
    _sweeps.append(sweep)
    again = _now["alone"] is not None or bool(_now["killed"])
    if again:
        write_json(sweep / ROUND, dict(_now))
    else:  # of a launch that was killed itself
        (sweep / ROUND).unlink(missing_ok=True)
    return again


def is_alone() -> bool:
    """Whether this launch is about a single job."""
    return _now["alone"] is not None


def is_left_out(job: str, sweep: Path) -> bool:
    """Whether the job of this name is not to run this time."""
    if not (sweep / ROUND).exists():
        return False
    try:
        said: Round = read_json(sweep / ROUND, Round, "remove it")
    except SimudyError:
        return False
    return job in said["killed"] or said["alone"] not in (None, job)


@contextmanager
def at_work(root: Path) -> Iterator[None]:
    """Leave a note that the job in ``root`` has begun, until it ends in any way but being
    killed.
    """
    (root / BEGUN).touch()
    try:
        yield
    finally:
        (root / BEGUN).unlink(missing_ok=True)


def _is_killed(error: Exception) -> bool:
    """Whether a worker was: joblib's, or ray's, which begins a job anew three times by itself."""
    return isinstance(error, BrokenProcessPool) or type(error).__name__ in _OF_RAY


def _survives(job: Path, launch: Callable[[], None]) -> bool:
    _now["alone"] = job.name
    try:
        launch()
    except Exception as error:
        if not _is_killed(error):
            raise
        (job / BEGUN).unlink(missing_ok=True)
        return False
    finally:
        _now["alone"] = None
    return True


def _begun(sweep: Path) -> list[Path]:
    return sorted(note.parent for note in sweep.rglob(BEGUN))
