"""The command ``simudy``. Free of torch until a run begins, so that ``--help`` and tab completion
are instant.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from simudy.app.complaint import EXPECTED, on_one_line, one_line
from simudy.app.settings.grammar import in_grammar
from simudy.app.settings.instantiate import allow_own_modules
from simudy.app.settings.schema import register, resolve
from simudy.app.signals import interrupt, signals_to
from simudy.app.sweep.failures import clear_failure, failures, save_failure

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130

log = logging.getLogger(__name__)
refused: list[
    str
] = []  # what was wrong with the command, if anything; Hydra hands no return value through
register()  # at import, so that the workers of a sweep know the schema too


def main() -> None:
    """Entry point of the console script."""
    # torch's threads otherwise spin while they wait: on cores that others use too, a run took five
    # times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = run_cli(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # simudy --help | head: whoever read has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    sys.exit(code)


def run_cli(argv: Sequence[str]) -> int:
    """Run a command line and return its exit code: 0 done, 2 bad input (one line says what), 130
    interrupted.
    """
    refused.clear()
    try:
        with _hydra_at_hand(argv), signals_to(interrupt):
            hydra.main(config_path="pkg://simudy.conf", config_name="config", version_base="1.3")(
                job
            )()
    except EXPECTED as error:
        refused.append(one_line(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as error:  # --help, --cfg, argparse
        return error.code if isinstance(error.code, int) else DONE
    for line in refused:
        print(f"simudy: error: {line}", file=sys.stderr)
    failed = failures()
    return BAD_INPUT if refused or failed else DONE


def job(cfg: DictConfig) -> float | None:
    """One run, as Hydra calls it: alone, or as one of a sweep. A failure of one is noted, and the
    others go on.
    """
    from simudy.app.tasks.run import run  # brings torch

    allow_own_modules()
    context = HydraConfig.get()
    root = Path(context.runtime.output_dir)
    try:
        clear_failure(root)
        result = run(resolve(cfg, list(context.overrides.task)), root)
        return _minimised(result)
    except KeyboardInterrupt:
        log.info("interrupted: the same command with hydra.run.dir=%s goes on from here", root)
        raise
    except Exception as error:
        if context.mode != RunMode.MULTIRUN and not isinstance(error, EXPECTED):
            raise
        _note(error, root, sweeping=context.mode == RunMode.MULTIRUN)
        return None


def _minimised(result: dict[str, Any] | None) -> float | None:
    """What an optimising sweeper minimises: infinity where no step of the search was finite."""
    if not result or "objective" not in result:
        return None
    return math.inf if result["objective"] is None else result["objective"]


def _note(error: Exception, root: Path, *, sweeping: bool) -> None:
    expected = isinstance(error, EXPECTED)
    line = one_line(error) if expected else on_one_line(f"{type(error).__name__}: {error}")
    if sweeping:
        log.error("failed: %s", line, exc_info=not expected)
        save_failure(root, line)
    else:
        refused.append(line)


@contextmanager
def _hydra_at_hand(argv: Sequence[str]) -> Iterator[None]:
    """Hydra reads ``sys.argv``; told to show full errors it raises them, and we print them in our
    way.
    """
    before, shown = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    flags = [
        word for word in argv if word in ("-m", "--multirun")
    ]  # argparse takes them first or last, not between
    sys.argv = ["simudy", *flags, *(in_grammar(word) for word in argv if word not in flags)]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR")
        if shown is not None:
            os.environ["HYDRA_FULL_ERROR"] = shown
        _close_log_files()


def _close_log_files() -> None:
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()
