"""What the jobs of a sweep came to, read from their directories."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simudy.app.store.run_directory import FINISHED, PRUNED, RunDirectory, read_result
from simudy.app.store.settings_file import read_yaml
from simudy.app.sweep import grid
from simudy.app.sweep.failures import FAILED, reason
from simudy.errors import SimudyError
from simudy.plain import fits, misfit

SCORES = ("ssim_paper", "ssim", "psnr", "mse", "recovered", "m_lin", "auc", "rank")
COSTS = ("distance", "objective", "iterations", "seconds", "peak_memory_mb")


@dataclass(frozen=True)
class Job:
    """One directory of a sweep.

    Attributes:
        settings: what the command line said of it, ``{key: value}``.
        status: ``finished``, ``converged``, ``diverged``, ``pruned``, ``failed`` or ``unfinished``.
        reason: why it failed.
        result: its ``result.json``.
    """

    root: Path
    settings: dict[str, str]
    status: str
    reason: str
    result: dict[str, Any]


def read_jobs(sweep: Path) -> list[Job]:
    """All that have begun.

    Raises:
        SimudyError: the directory holds no jobs.
    """
    said = sorted(sweep.glob("*/.hydra/overrides.yaml"))
    if not said:
        raise SimudyError(
            f"no jobs in {sweep}: give the directory of a sweep, as in simudy-sweep "
            "runs/faces/sweep"
        )
    return [_job(path.parents[1]) for path in said]


def swept_keys(jobs: list[Job]) -> list[str]:
    """The keys on which the jobs differ, in the order they were given."""
    keys = dict.fromkeys(key for job in jobs for key in job.settings)
    return [key for key in keys if len({job.settings.get(key) for job in jobs}) > 1]


def never_begun(sweep: Path, jobs: list[Job]) -> list[dict[str, str]]:
    """Settings of the grid, as it was last launched, that have no directory yet."""
    begun = [job.settings for job in jobs]
    seen = {tuple(sorted(settings.items())) for settings in begun}
    asked = _grid(sweep / "multirun.yaml")
    return [settings for settings in asked if tuple(sorted(settings.items())) not in seen]


def table(jobs: list[Job], keys: list[str]) -> str:
    """The jobs as CSV: a row each, with what was swept, the scores, the floor and the cost."""
    text, figures = io.StringIO(), [*SCORES, *COSTS]
    writer = csv.writer(text, lineterminator="\n")
    swept = [
        f"swept {key}" if key in figures else key for key in keys
    ]  # `distance` is a setting and a figure
    writer.writerow(["job", *swept, "status", *figures, "floor_heldout"])
    for job in jobs:
        said, found = (
            [job.settings.get(key) for key in keys],
            [job.result.get(name) for name in figures],
        )
        writer.writerow(
            [
                job.root.name,
                *said,
                job.status,
                *found,
                (job.result.get("floor") or {}).get("heldout"),
            ]
        )
    return text.getvalue()


def _job(root: Path) -> Job:
    folder, failed = RunDirectory(root), root / FAILED
    try:
        settings = _assignments(_overrides(root / ".hydra" / "overrides.yaml"))
    except SimudyError as error:
        return Job(root, {}, "failed", str(error), {})
    if failed.exists():
        return Job(root, settings, "failed", reason(failed), {})
    try:
        result = read_result(folder.result) if folder.result.exists() else {}
    except SimudyError as error:
        return Job(root, settings, "failed", str(error), {})
    status = result.get("status")
    ended = status in (*FINISHED, PRUNED)
    return Job(root, settings, status if ended else "unfinished", "", result)


def _overrides(path: Path) -> list[str]:
    said = read_yaml(path, "remove its folder and run again")
    if not fits(said, list[str]):
        raise SimudyError(f"{path} is damaged: remove its folder and run again")
    return said


def _grid(multirun: Path) -> Iterator[dict[str, str]]:
    """All combinations that a launch asked for; none where another sweeper than Hydra's own chose
    them.

    Raises:
        SimudyError: the file is damaged, or there are more than anyone can read.
    """
    cfg = read_yaml(multirun, "remove it") if multirun.exists() else {}
    if wrong := misfit(cfg, dict[str, Any], ""):
        raise SimudyError(f"{multirun} is damaged ({wrong.lstrip('=')}): remove it")
    asked, sweeper = _inner(cfg, "hydra"), _inner(cfg, "hydra", "sweeper")
    if not str(sweeper.get("_target_")).endswith("BasicSweeper"):
        return
    task = _inner(asked, "overrides").get("task")
    words = [f"{key}={value}" for key, value in _inner(sweeper, "params").items()]
    words += [str(word) for word in task] if isinstance(task, list) else []
    if grid.count(words) > grid.MOST:
        raise SimudyError(f"{multirun} asks for more than {grid.MOST:,} jobs: remove it to go on")
    for combination in grid.combinations(words):
        yield _assignments(combination)


def _inner(node: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A mapping within mappings; empty where there is none."""
    for key in keys:
        found = node.get(key)
        node = found if isinstance(found, dict) else {}
    return node


def _assignments(overrides: Iterable[Any]) -> dict[str, str]:
    pairs = (str(word).partition("=") for word in overrides)
    return {key.lstrip("+"): value for key, _, value in pairs}
