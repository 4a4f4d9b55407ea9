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

from simudy.app.folder import Folder
from simudy.errors import SimudyError

log = logging.getLogger(__name__)

# task: where its function is, (cfg, folder) -> result; imported when asked for.
TASKS = {
    "run": "simudy.app.run:whole",
    "victim": "simudy.app.run:victim",
    "reconstruct": "simudy.app.run:whole",
    "score": "simudy.app.run:rescore",
    "linearity": "simudy.app.linearity:linearity",
    "size": "simudy.app.size:size",
}


def run(cfg: DictConfig, root: Path) -> dict[str, Any] | None:
    """Do ``cfg.task`` in the directory ``root``; what is there already is not done again.

    Raises:
        SimudyError: bad input.
        KeyboardInterrupt: stopped by a person; what was found so far is on disk.
    """
    from simudy.app.precision import multiply_exactly

    multiply_exactly()
    if cfg.dry_run:
        return rehearsed(cfg)
    return _task(cfg.task)(cfg, Folder(root))


def whole(cfg: DictConfig, folder: Folder) -> dict[str, Any]:
    """Victim, attack and score; ``task=reconstruct`` takes evidence that is there."""
    from simudy.app import evidence, settings
    from simudy.app.attack import attack
    from simudy.app.finish import announce_finished, finish

    folder.claim(cfg)
    if folder.finished():
        return announce_finished(folder)
    device = settings.device(cfg.device)
    held, secret = evidence.obtain(cfg, folder, device), evidence.secret_of(cfg, folder)
    attack(cfg, held, secret, folder, device)
    result = finish(cfg, secret, _normalisation(held), folder)
    if result["status"] == "interrupted":
        raise KeyboardInterrupt
    return result


def victim(cfg: DictConfig, folder: Folder) -> None:
    """Stop when evidence and secret are laid down."""
    from simudy.app import evidence, settings

    folder.claim(cfg)
    evidence.obtain(cfg, folder, settings.device(cfg.device))
    log.info("evidence: %s", folder.evidence)


def rescore(cfg: DictConfig, folder: Folder) -> dict[str, Any]:
    """Score, and draw, what the directory holds, by its own settings."""
    from simudy.app import evidence, settings
    from simudy.app.finish import finish

    cfg = OmegaConf.merge(folder.settings(), {"task": "score"})  # type: ignore[assignment]
    held = evidence.obtain(cfg, folder, settings.device("cpu"))
    return finish(cfg, evidence.secret_of(cfg, folder), _normalisation(held), folder)


def rehearsed(cfg: DictConfig) -> None:
    """A dry run: everything is built, one outer step is taken, nothing is kept."""
    from simudy.app import evidence, settings
    from simudy.app.attack import rehearse
    from simudy.app.recipe import recipe

    device = settings.device(cfg.device)
    short = OmegaConf.merge(
        cfg, {"task": "run", "recipe": {"epochs": 1}, "victim": {"pretrain": {"epochs": 0}}}
    )
    with tempfile.TemporaryDirectory() as root:
        folder = Folder(Path(root))
        held, secret = evidence.obtain(short, folder, device), evidence.secret_of(short, folder)  # type: ignore[arg-type]
    if not cfg.evidence.folder:
        held = dataclasses.replace(held, recipe=recipe(cfg))  # the overview tells of the whole run
    rehearse(cfg, held, secret, device)


def _normalisation(held: Any) -> Any:
    from simudy.victim.data import Normalisation

    return Normalisation(held.mean, held.std)


def _task(name: str) -> Callable[[DictConfig, Folder], dict[str, Any] | None]:
    if name not in TASKS:
        raise SimudyError(f"task={name}: choose from {', '.join(TASKS)}")
    module, _, function = TASKS[name].partition(":")
    return getattr(import_module(module), function)
