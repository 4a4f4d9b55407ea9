"""What the jobs of a sweep came to, read from their directories."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from simudy.app.store.run_directory import FINISHED, RunDirectory, read_json
from simudy.app.sweep.failures import FAILED
from simudy.errors import SimudyError

SCORES = ("ssim_paper", "ssim", "psnr", "mse", "recovered", "m_lin", "rank")
COSTS = ("distance", "objective", "iterations", "seconds", "peak_memory_mb")


@dataclass(frozen=True)
class Job:
    """One directory of a sweep.

    Attributes:
        settings: what the command line said of it, ``{key: value}``.
        status: ``finished``, ``converged``, ``diverged``, ``failed`` or ``unfinished``.
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
    return [settings for settings in _grid(sweep / "multirun.yaml") if settings not in begun]


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
    overrides = OmegaConf.to_container(OmegaConf.load(root / ".hydra" / "overrides.yaml"))
    settings = _assignments(overrides)  # type: ignore[arg-type]
    if failed.exists():
        return Job(root, settings, "failed", failed.read_text().strip(), {})
    result = read_json(folder.result) if folder.result.exists() else {}
    status = result.get("status")
    return Job(root, settings, status if status in FINISHED else "unfinished", "", result)


def _grid(multirun: Path) -> Iterator[dict[str, str]]:
    """All combinations that a launch asked for; none where another sweeper than Hydra's own chose
    them.
    """
    cfg = OmegaConf.load(multirun) if multirun.exists() else OmegaConf.create()
    if not str(OmegaConf.select(cfg, "hydra.sweeper._target_")).endswith("BasicSweeper"):
        return
    params = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
    words = [f"{key}={value}" for key, value in params.items()] + list(cfg.hydra.overrides.task)
    (combinations,) = BasicSweeper.split_arguments(
        OverridesParser.create().parse_overrides(words), None
    )
    for combination in combinations:
        yield _assignments(combination)


def _assignments(overrides: Any) -> dict[str, str]:
    pairs = (str(word).partition("=") for word in overrides)
    return {key.lstrip("+"): value for key, _, value in pairs}
