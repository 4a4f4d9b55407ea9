"""The second stage: reconstruct the images behind the evidence, from wherever an earlier launch was
stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import resource
import sys
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from simudy.analysis.metrics import WINDOW
from simudy.app.settings import factories
from simudy.app.settings.fingerprint import config_hash
from simudy.app.store import history
from simudy.app.store.run_directory import PRUNED, RunDirectory
from simudy.app.sweep.pruning import Pruned, Pruning
from simudy.app.tasks.decode import decode
from simudy.app.tasks.plan import fit_to_memory, overview
from simudy.app.tasks.precision import at_precision
from simudy.app.tasks.watch import Watch
from simudy.app.tracking import Guarded
from simudy.app.translate import in_settings
from simudy.attack.checkpoints.limits import independent_numbers, limits
from simudy.attack.evidence import Evidence
from simudy.attack.methods.problem import Problem
from simudy.attack.search import Search
from simudy.errors import SimudyError
from simudy.outcome import Reconstruction

log = logging.getLogger(__name__)


def attack(
    cfg: DictConfig,
    evidence: Evidence,
    *,
    labels: str | Tensor,
    folder: RunDirectory,
    device: torch.device,
    tracker: Guarded,
    pruning: Pruning | None = None,
) -> None:
    """Reconstruct, and write the outcome to the run's directory."""
    evidence = evidence.to(device)
    numbers = independent_numbers(evidence)
    method, problem = _build_problem(cfg, evidence, labels, device, numbers=numbers)
    pose = partial(method.problem, seed=cfg.seed)
    problem = at_precision(cfg.precision, problem, evidence, pose)
    search = factories.new_search(cfg, problem)
    watch = Watch(folder, cfg.intervals, search.outer.iterations, tracker=tracker)
    if not watch.resume(search):  # it may be half loaded
        search = factories.new_search(cfg, problem)
    with watch.at_work():
        found = _search(search, watch, pruning or Pruning())
    watch.save()
    watch.tell(found.history)
    log.info(
        "%s after %d iterations: distance %.3e", found.status, found.iterations, found.distance
    )
    history.save(folder.history, found.history)
    found, certified = decode(found, evidence, cfg) if cfg.outer.decode else (found, {})
    facts = {**_facts(cfg, found, evidence, device, numbers=numbers), **certified}
    found.write_tensors(folder.reconstruction, facts)


def _search(search: Search, watch: Watch, pruning: Pruning) -> Reconstruction:
    def after(search: Search) -> None:
        watch(search)
        pruning(search)

    try:
        return search.run(on_step=after)
    except Pruned:
        return search.result(PRUNED)


def take_one_step(
    cfg: DictConfig, evidence: Evidence, *, labels: str | Tensor, device: torch.device
) -> None:
    """Build everything, say what would happen, and take one outer step on a run of one epoch."""
    evidence = evidence.to(device)
    method, problem = _build_problem(cfg, evidence, labels, device)
    at_precision(cfg.precision, problem, evidence, partial(method.problem, seed=cfg.seed))
    if method.recipe is not None:
        one_epoch = dataclasses.replace(method.recipe, epochs=1, schedule=None)
        method = dataclasses.replace(method, recipe=one_epoch)
    search = factories.new_search(cfg, method.problem(evidence, seed=cfg.seed))
    search.step()
    log.info("dry run: one outer step on one epoch took %.2f s", search.seconds)


def _build_problem(
    cfg: DictConfig,
    evidence: Evidence,
    labels: str | Tensor,
    device: torch.device,
    *,
    numbers: int | None = None,
) -> tuple[Any, Problem]:
    """The method, in a form that fits the device, and its problem; says what is about to happen.

    Args:
        numbers: see ``limits``.
    """
    method = factories.method(cfg, evidence, labels=labels)
    problem = method.problem(evidence, seed=cfg.seed)
    n = len(problem.variables()["latent"])
    fits = fit_to_memory(method, evidence, n=n, device=device, limit=cfg.memory)
    if fits is not method:
        problem = fits.problem(evidence, seed=cfg.seed)
    log.info(overview(evidence, problem, fits, device=device))
    for finding in evidence.notes.get("findings", ()):
        log.info("from the files: %s", in_settings(finding, cfg))
    for reason in limits(evidence, n=n, numbers=numbers):
        log.info("what limits any attack: %s", in_settings(reason, cfg))
    return fits, problem


def require_scorable(evidence: Evidence) -> None:
    """Before the attack rather than after it.

    Raises:
        SimudyError: the images are smaller than SSIM's window.
    """
    if min(evidence.shape[-2:]) < WINDOW:
        size = "×".join(map(str, evidence.shape[-2:]))
        window = f"{WINDOW}×{WINDOW}"
        raise SimudyError(
            f"images of {size} are too small for SSIM, whose window is {window}: set a larger "
            "data.size"
        )


def _facts(
    cfg: DictConfig,
    found: Reconstruction,
    evidence: Evidence,
    device: torch.device,
    *,
    numbers: int,
) -> dict[str, Any]:
    """The part of result.json that needs no secret."""
    return {
        "status": found.status,
        "distance": found.distance,
        "objective": found.objective,
        "iterations": found.iterations,
        "seconds": round(found.seconds, 3),
        "seconds_per_iteration": (found.history[-1]["seconds"] if found.history else 0.0)
        / max(found.iterations, 1),
        "peak_memory_mb": round(_peak_memory(device), 1),
        "n": evidence.n or len(found.images),
        "limits": limits(evidence, n=len(found.images), numbers=numbers),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "versions": {
            "python": platform.python_version(),
            **{k: version(k) for k in ("torch", "simudy", "numpy")},
        },
        "config_hash": config_hash(cfg),
    }


def _peak_memory(device: torch.device) -> float:
    """In MB: of the GPU where there is one, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
