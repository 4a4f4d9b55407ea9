"""What stands beside the search while it runs: progress, snapshots, checkpoints and a way to stop
it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from simudy import stopping
from simudy.app.processes import agree_to_stop, is_first
from simudy.app.store import checkpoint
from simudy.app.store.history import LiveHistory
from simudy.app.store.run_directory import RunDirectory
from simudy.app.tracking import Guarded
from simudy.attack.search import Search

log = logging.getLogger(__name__)


class Watch:
    """Called after every step, those that refine included.

    Attributes:
        snapshots: images by iteration, dense at first and sparser later, for the curve and the
            filmstrip.
    """

    def __init__(
        self, folder: RunDirectory, intervals: DictConfig, iterations: int, *, tracker: Guarded
    ) -> None:
        self.path, self.intervals, self.iterations = folder.checkpoint, intervals, iterations
        self.tracker, self.history = tracker, LiveHistory(folder.history)
        self.moments = set(moments(iterations, intervals.snapshots))
        self.snapshots: dict[int, Tensor] = {}
        self.saved = self.logged = time.monotonic()
        self.bar: tqdm | None = None
        self.search: Search | None = None

    def resume(self, search: Search) -> bool:
        """Bring ``search`` to where it was left. False: it was not, or by another version of
        simudy, whose checkpoint is kept; then ``search`` is not to be used.
        """
        state = checkpoint.load(self.path)
        if state is None:
            return False
        try:
            search.load_state_dict(state["search"])
            self.snapshots = checkpoint.snapshots(state)
            self.history.known = len(search.history)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError):
            checkpoint.set_aside(self.path)
            return False
        log.info("going on from iteration %d", search.iteration)
        return True

    def __call__(self, search: Search) -> None:
        self.search, now = search, time.monotonic()
        agree_to_stop()
        if search.iteration in self.moments:
            self.snapshots[search.iteration] = search.problem.images().detach().cpu().clone()
        self.tell(search.history)
        self._report(search, now)
        if stopping.is_asked() or now - self.saved >= self.intervals.checkpoint:
            self.save()
        stopping.check()

    def tell(self, history: list[dict[str, float]]) -> None:
        """Write the rows that are new, and tell the tracker."""
        for row in self.history.add(history):
            values = {name: value for name, value in row.items() if name != "iteration"}
            self.tracker.log(int(row["iteration"]), values)

    def save(self) -> None:
        """Write the checkpoint, if a step was taken."""
        if self.search is not None:
            checkpoint.save(
                self.path, {"search": self.search.state_dict(), "snapshots": self.snapshots}
            )
            self.saved = time.monotonic()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The search is on: whatever ends it, the progress bar goes."""
        try:
            yield
        finally:
            if self.bar is not None:
                self.bar.close()

    def _report(self, search: Search, now: float) -> None:
        last = (
            search.history[-1]
            if search.history
            else {"objective": float("nan"), "distance": float("nan")}
        )
        distance = search.best["distance"] if search.refined else last["distance"]
        if sys.stderr.isatty() and is_first():
            if self.bar is None:
                self.bar = tqdm(
                    total=self.iterations, initial=search.iteration - 1, unit="step", leave=False
                )
            self.bar.set_postfix(distance=f"{distance:.2e}", refresh=search.refined > 0)
            self.bar.update(0 if search.refined else 1)
        elif now - self.logged >= self.intervals.log:
            if search.refined:
                log.info(
                    "refining, step %d of up to %d: distance %.3e",
                    search.refined,
                    search.outer.refine,
                    distance,
                )
            else:
                left = search.seconds / search.iteration * (self.iterations - search.iteration)
                words = "iteration %d of %d: objective %.3e, distance %.3e, %s left"
                log.info(
                    words,
                    search.iteration,
                    self.iterations,
                    last["objective"],
                    distance,
                    _clock(left),
                )
            self.logged = now


def moments(iterations: int, count: int) -> list[int]:
    """``count`` iterations from the first to the last, spaced ever wider: images change most at
    first.
    """
    return (
        sorted({max(1, round(iterations * (i / max(count - 1, 1)) ** 2)) for i in range(count)})
        if count > 0
        else []
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
