"""What ``task`` names: the stages of a run, alone or one after the other."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from simudy.app.store.run_directory import RunDirectory
from simudy.errors import SimudyError

log = logging.getLogger(__name__)

# task: where its function is, (cfg, folder) -> result; imported when asked for.
TASKS = {
    "run": "simudy.app.tasks.run:run_stages",
    "victim": "simudy.app.tasks.run:victim",
    "reconstruct": "simudy.app.tasks.run:run_stages",
    "score": "simudy.app.tasks.run:rescore",
    "verdict": "simudy.app.audit.verdict:verdict",
    "diagnose": "simudy.app.audit.diagnose:diagnose",
    "linearity": "simudy.app.tasks.measure_linearity:linearity",
    "size": "simudy.app.tasks.estimate_size:size",
    "exposure": "simudy.app.tasks.measure_exposure:measure",
    "membership": "simudy.app.tasks.membership.judge:membership",
}


def run(cfg: DictConfig, root: Path) -> dict[str, Any] | None:
    """Do ``cfg.task`` in the directory ``root``; what is there already is not done again.

    Raises:
        SimudyError: bad input.
        KeyboardInterrupt: stopped by a person; what was found so far is on disk.
    """
    from simudy.app.tasks.precision import multiply_exactly

    multiply_exactly()
    if cfg.dry_run:
        return dry_run(cfg)
    return _task(cfg.task)(cfg, RunDirectory(root))


def run_stages(cfg: DictConfig, folder: RunDirectory) -> dict[str, Any]:
    """Victim, attack and score; ``task=reconstruct`` takes evidence that is there."""
    from simudy.app.processes import first_alone, folder_of_own
    from simudy.app.settings import factories
    from simudy.app.sweep.pruning import is_asked, new_pruning
    from simudy.app.tasks import prepare
    from simudy.app.tasks.finish import announce_finished
    from simudy.app.tracking import new_tracker

    with first_alone():
        folder.claim(cfg)
        if folder.finished(pruning=is_asked(cfg)):
            return announce_finished(folder)
        pruning = new_pruning(cfg)
        tracker = new_tracker(cfg, folder.root)  # refused before anything is trained
        held = prepare.prepare_evidence(cfg, folder, factories.device(cfg.device))
        if not folder.secret.exists():
            prepare.lay_down_truth(cfg, folder, held)
        secret = prepare.load_secret(cfg, folder)
    with folder_of_own(folder.root) as root:
        told = {"tracker": tracker, "pruning": pruning}
        return _attack_and_score(cfg, held, secret, RunDirectory(root), told)


def _attack_and_score(
    cfg: DictConfig, held: Any, secret: Any, folder: RunDirectory, told: dict[str, Any]
) -> dict[str, Any]:
    from simudy.app.settings import factories
    from simudy.app.tasks.finish import finish
    from simudy.app.tasks.labels import resolve_labels
    from simudy.app.tasks.reconstruct import attack, require_scorable

    if secret is not None:
        require_scorable(held)
    labels, device = resolve_labels(cfg.dummy.labels, secret), factories.device(cfg.device)
    tracker = told["tracker"]
    tracker.start(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    attack(cfg, held, labels=labels, folder=folder, device=device, **told)
    result = finish(cfg, secret, held, folder)
    tracker.finish(result)
    if result["status"] == "interrupted":
        raise KeyboardInterrupt
    return result


def victim(cfg: DictConfig, folder: RunDirectory) -> None:
    """Stop when evidence and secret are laid down."""
    from simudy.app.settings import factories
    from simudy.app.tasks import prepare

    folder.claim(cfg)
    prepare.prepare_evidence(cfg, folder, factories.device(cfg.device))
    log.info("evidence: %s", folder.evidence)


def rescore(cfg: DictConfig, folder: RunDirectory) -> dict[str, Any]:
    """Score, and draw, what the directory holds, by its own settings."""
    from simudy.app.settings import factories
    from simudy.app.tasks import prepare
    from simudy.app.tasks.finish import finish

    said = {key: cfg.evidence[key] for key in ("truth", "heldout")}
    cfg = OmegaConf.merge(folder.settings(cfg), {"task": "score"})  # type: ignore[assignment]
    held = prepare.prepare_evidence(cfg, folder, factories.device("cpu"))
    if said["truth"] is not None:  # images that came to light after the attack
        with_truth: Any = OmegaConf.merge(cfg, {"evidence": said})
        prepare.lay_down_truth(with_truth, folder, held)
    return finish(cfg, prepare.load_secret(cfg, folder), held, folder)


def beside_a_run(cfg: DictConfig, folder: RunDirectory) -> tuple[DictConfig, bool]:
    """The settings of a task that asks about weights, by those of the run whose directory this is;
    and whether the directory is the task's own.
    """
    if not folder.config.exists():
        folder.claim(cfg)
        return cfg, True
    earlier, asked = folder.settings(cfg), {key: cfg[key] for key in ("task", cfg.task)}
    return OmegaConf.merge(earlier, asked), earlier.task == cfg.task  # type: ignore[return-value]


def report_anew(cfg: DictConfig, folder: RunDirectory) -> None:
    """Lay the report out with what was found beside it, where there is one."""
    if folder.reconstruction.exists() and folder.result.exists():
        rescore(cfg, folder)


def dry_run(cfg: DictConfig) -> None:
    """A dry run: everything is built, one outer step is taken, nothing is kept."""
    from simudy.app.settings import factories
    from simudy.app.settings.factories import recipe
    from simudy.app.tasks import prepare
    from simudy.app.tasks.labels import resolve_labels
    from simudy.app.tasks.reconstruct import take_one_step

    device = factories.device(cfg.device)
    given = cfg.evidence.initial or cfg.evidence.folder
    one_epoch = {"recipe": {"epochs": 1}, "victim": {"pretrain": {"epochs": 0}}}
    short: Any = OmegaConf.merge(cfg, {"task": "run"}, {} if given else one_epoch)
    with tempfile.TemporaryDirectory() as root:
        folder = RunDirectory(Path(root))
        held = prepare.prepare_evidence(short, folder, device)
        prepare.lay_down_truth(short, folder, held)
        secret = prepare.load_secret(short, folder)
    if not given:
        held = dataclasses.replace(held, recipe=recipe(cfg))  # the overview tells of the whole run
    labels = resolve_labels(cfg.dummy.labels, secret)
    take_one_step(cfg, held, labels=labels, device=device)


def _task(name: str) -> Callable[[DictConfig, RunDirectory], dict[str, Any] | None]:
    if name not in TASKS:
        raise SimudyError(f"task={name}: choose from {', '.join(TASKS)}")
    module, _, function = TASKS[name].partition(":")
    return getattr(import_module(module), function)
