"""The command ``simudy``. Free of torch until a run begins, so that ``--help`` and tab completion
are instant.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from simudy import stopping
from simudy.app import processes, signals, streams
from simudy.app.complaint import FORESEEN, debugging, one_line
from simudy.app.settings.grammar import in_grammar
from simudy.app.settings.instantiate import allow_own_modules
from simudy.app.settings.schema import register, resolve
from simudy.app.sweep.failures import clear_failure, failures, save_failure
from simudy.app.sweep.grid import refuse_too_many
from simudy.app.sweep.optional import refuse_missing
from simudy.app.sweep.restart import at_work, is_left_out, persistently
from simudy.app.translate import in_settings
from simudy.app.usage import usage, version
from simudy.errors import SimudyError
from simudy.files import private_files

DONE, BAD_INPUT, INTERRUPTED = 0, 2, signals.INTERRUPTED

log = logging.getLogger(__name__)
refused: list[
    str
] = []  # what was wrong with the command, if anything; Hydra hands no return value through
register()  # at import, so that the workers of a sweep know the schema too


def main() -> None:
    """Entry point of the console script, after ``entry.py``."""
    # torch's threads otherwise spin while they wait: on cores that others use too, a run took five
    # times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    streams.make_streams_safe()
    code = run_cli(sys.argv[1:])
    if (unsaid := streams.flush()) is not None:
        streams.say(f"simudy: error: cannot write what there is to say: {one_line(unsaid)}")
        code = code or BAD_INPUT
    sys.exit(code)


def run_cli(argv: Sequence[str]) -> int:
    """Run a command line and return its exit code: 0 done, 2 bad input (one line says what), 130
    interrupted.
    """
    refused.clear()
    try:
        if told := _told(argv):
            print(told)
            return DONE
        refuse_missing(argv)
        refuse_too_many(argv)
        with (
            processes.apart(argv) as words,
            _hydra_at_hand(words),
            private_files(),
            signals.stopping_on_signals(),
        ):
            main = hydra.main(
                config_path="pkg://simudy.conf", config_name="config", version_base="1.3"
            )
            persistently(main(job), save_failure)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # simudy --help | head: whoever read has had enough
        return DONE
    except SystemExit as error:  # --help, --cfg, argparse; a sweep that is refused says why
        if not isinstance(error.code, str):
            return BAD_INPUT if error.code else DONE
        refused.append(error.code)
    except Exception as error:
        if debugging():
            raise
        refused.append(one_line(error, foreseen=(Exception,)))  # of Hydra: a job notes its own
    for line in refused:
        streams.say(_as_error(line))
        signals.last_words(None)
    failed = failures()
    return BAD_INPUT if refused or failed else DONE


def _as_error(line: str) -> str:
    return f"simudy: error: {line}"


def _told(argv: Sequence[str]) -> str | None:
    """What a person asked to be told, in place of a run."""
    if "--version" in argv:
        return version()
    asked = {"--help", "-h"} & set(argv)
    return usage([in_grammar(word) for word in argv if word not in asked]) if asked else None


def job(cfg: DictConfig) -> float | None:
    """One run, as Hydra calls it: alone, or as one of a sweep. A failure of one is noted, and the
    others go on.
    """
    context = HydraConfig.get()
    root, sweeping = Path(context.runtime.output_dir), context.mode == RunMode.MULTIRUN
    try:
        with private_files(), signals.stopping_on_signals():
            return _run(cfg, root, sweeping=sweeping)
    except KeyboardInterrupt:
        log.info("interrupted: the same command with hydra.run.dir=%s goes on from here", root)
        raise
    except SystemExit as error:
        stopped = SimudyError(f"code of yours called sys.exit({error.code!r}): take that out")
        return _note(stopped, root, cfg, sweeping=sweeping)
    except Exception as error:
        if debugging() and not sweeping and not isinstance(error, FORESEEN):
            raise
        return _note(error, root, cfg, sweeping=sweeping)


def _run(cfg: DictConfig, root: Path, *, sweeping: bool) -> float | None:
    from simudy.app.store.lock import held
    from simudy.app.tasks.run import run  # brings torch

    stopping.check()
    if sweeping and is_left_out(root.name, Path(HydraConfig.get().sweep.dir)):
        return None
    allow_own_modules()
    context = HydraConfig.get()
    settings = resolve(cfg, list(context.overrides.task), context)  # type: ignore[arg-type]
    if settings.dry_run:
        with processes.joined(settings.parallel):
            run(settings, root)
        return None
    with processes.joined(settings.parallel):
        root = processes.same(root)
        mine = held(root, wait=sweeping) if processes.is_first() else nullcontext()
        with mine, at_work(root) if sweeping else nullcontext():
            clear_failure(root)
            return _minimised(run(settings, root))


def _minimised(result: dict[str, Any] | None) -> float | None:
    """What an optimising sweeper minimises: infinity where no step of the search was finite."""
    if not result or "objective" not in result:
        return None
    return math.inf if result["objective"] is None else result["objective"]


def _note(error: Exception, root: Path, cfg: DictConfig, *, sweeping: bool) -> None:
    if not processes.is_first() and (isinstance(error, FORESEEN) or processes.is_lost(error)):
        raise SystemExit(BAD_INPUT)  # the first process says the same
    words = in_settings(one_line(error), cfg)
    if not sweeping:
        refused.append(words)
        signals.last_words(_as_error(words))
        return
    log.error("failed: %s", words, exc_info=error if debugging() else None)
    try:
        save_failure(root, words)
    except OSError as unsaved:
        log.error("failed: %s", one_line(unsaved))


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
