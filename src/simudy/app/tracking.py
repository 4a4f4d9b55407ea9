"""A hook for trackers of experiments: three methods, called as a search goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from simudy.app.complaint import on_one_line
from simudy.app.processes import is_first
from simudy.app.settings.instantiate import build
from simudy.errors import SimudyError

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What ``tracker._target_`` makes. A constructor that takes ``folder`` gets the run's.

    A run that goes on where it was stopped makes a new one, which is started again, and may be told
    once more of steps that came after the last checkpoint.
    """

    def start(self, settings: Mapping[str, Any]) -> None:
        """The search begins, or goes on; ``settings`` are those of ``config.yaml``."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A row of ``history.csv``; steps count from 1."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """The run is over; ``result`` is that of ``result.json``."""


class TensorBoard:
    """Curves for ``tensorboard --logdir runs``.

    Args:
        folder: of the run; the events go to ``tensorboard`` in it.
    """

    def __init__(self, folder: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SimudyError(
                "tracker=tensorboard needs TensorBoard: pip install 'simudy[tensorboard]', or set "
                "tracker=null"
            ) from error
        self.new_writer, self.folder = SummaryWriter, Path(folder) / "tensorboard"
        self.writer: Any = None
        self.settings: Mapping[str, Any] = {}

    def start(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def log(self, step: int, values: Mapping[str, float]) -> None:
        writer = self._writer(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def finish(self, result: Mapping[str, Any]) -> None:
        writer = self._writer(None)
        for name, value in result.items():
            if isinstance(value, (int, float)):
                writer.add_scalar(f"result/{name}", value)
        writer.close()

    def _writer(self, step: int | None) -> Any:
        """Made at the first step: what an earlier launch said from there on is taken back."""
        if self.writer is None:
            self.writer = self.new_writer(str(self.folder), purge_step=step, flush_secs=10)
            self.writer.add_text(
                "settings", f"```\n{json.dumps(dict(self.settings), indent=2)}\n```"
            )
        return self.writer


class Guarded:
    """A tracker that cannot cost a run: where it fails, a warning is said, and it is left out from
    then on.

    Args:
        tracker: or None for none.
    """

    def __init__(self, tracker: Tracker | None = None) -> None:
        self.tracker = tracker

    def start(self, settings: Mapping[str, Any]) -> None:
        self._tell("start", settings)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._tell("log", step, values)

    def finish(self, result: Mapping[str, Any]) -> None:
        self._tell("finish", result)

    def _tell(self, method: str, *said: Any) -> None:
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, method)(*said)
        except Exception as error:  # of a package we do not know, or its server
            reason = on_one_line(f"{type(error).__name__}: {error}")
            log.warning("tracker.%s: %s; the run goes on without it", method, reason)
            self.tracker = None


def new_tracker(cfg: DictConfig, folder: Path) -> Guarded:
    """The tracker that the settings name.

    Raises:
        SimudyError: there is no such, it cannot be made, or lacks a method.
    """
    if not is_first() or not cfg.tracker or cfg.tracker.get("_target_") is None:
        return Guarded()
    made = build(cfg.tracker, "tracker", folder=str(folder))
    for method in ("start", "log", "finish"):
        if not callable(getattr(made, method, None)):
            raise SimudyError(
                f"tracker._target_={cfg.tracker['_target_']} has no method {method}: give it "
                "start(settings), log(step, values) and finish(result)"
            )
    return Guarded(made)
