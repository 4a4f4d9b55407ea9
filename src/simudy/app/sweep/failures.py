"""A sweep's jobs: which failed, and saying so at the end. Those that finished are skipped by
``run`` itself.

A job's directory is named by the hash of its settings (``hydra.sweep.subdir``), so that a relaunch,
which numbers its jobs anew, finds each one's own directory again.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from simudy.app.settings.instantiate import allow_own_modules
from simudy.app.signals import only_launching
from simudy.app.sweep.pruning import new_pruner
from simudy.app.sweep.restart import begin_round, is_alone
from simudy.errors import SimudyError
from simudy.files import read_text, write_atomically

log = logging.getLogger(__name__)

FAILED = "failed.txt"
_found: list[str] = []
_began: list[float] = []  # when the sweep did


class Failures(Callback):
    """Names the failed jobs when all have had their turn. Runs where the sweep was launched,
    whatever the launcher.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            allow_own_modules()
            new_pruner(config, config.hydra)
        except SimudyError as error:  # Hydra makes a warning of any other exception of a callback
            raise SystemExit(str(error)) from error
        if not begin_round(Path(config.hydra.sweep.dir)):
            _began[:] = [time.time()]
        _found.clear()
        launcher = str(config.hydra.launcher.get("_target_", ""))
        only_launching(not launcher.endswith("BasicLauncher"))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if is_alone():  # one job of a launch that is taken up again
            return
        notes = sorted(Path(config.hydra.sweep.dir).glob(f"*/{FAILED}"))
        _found.extend(
            f"{note.parent}: {reason(note)}" for note in notes if note.stat().st_mtime >= _began[0]
        )
        for line in _found:
            log.error("failed: %s", line)
        log.info("%d failed; simudy-sweep %s draws the rest", len(_found), config.hydra.sweep.dir)


def failures() -> list[str]:
    """The jobs of the sweep just run that failed, and why; asked for once."""
    found = list(_found)
    _found.clear()
    return found


def reason(note: Path) -> str:
    """What ``save_failure`` wrote, as far as it can be read."""
    try:
        return " ".join(read_text(note, "remove it").split())[:500]
    except SimudyError as error:
        return str(error)


def save_failure(root: Path, reason: str) -> None:
    """Leave word in a job's directory."""
    write_atomically(root / FAILED, reason.encode())


def clear_failure(root: Path) -> None:
    """A new attempt starts clean."""
    (root / FAILED).unlink(missing_ok=True)
