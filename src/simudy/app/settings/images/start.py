"""What the dummies begin at: noise, public images, or what earlier runs found."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from simudy.app.settings.images.public import public_images
from simudy.app.store import reconstruction
from simudy.app.store.run_directory import RunDirectory
from simudy.attack.consensus import consensus
from simudy.attack.evidence import Evidence
from simudy.errors import SimudyError
from simudy.files import user_path

log = logging.getLogger(__name__)

_PUBLIC = 1000  # images to begin at: more than any attack here has dummies


def load_start(cfg: DictConfig, evidence: Evidence) -> tuple[Tensor | None, Tensor | None]:
    """Normalised images ``(n, c, h, w)`` that ``dummy.start`` names, and their labels; None where
    it says nothing.

    Raises:
        SimudyError: nothing is there, or it does not fit the other settings.
    """
    said = cfg.dummy.start
    if said is None:
        return None, None
    if said == "natural":
        return _public(cfg, evidence), None
    return _found(cfg, list(said) if OmegaConf.is_list(said) else [said])


def _public(cfg: DictConfig, evidence: Evidence) -> Tensor:
    public = public_images(cfg, evidence, asked="dummy.start=natural", instead="null")
    return public[:_PUBLIC].to(next(iter(evidence.initial.values())))


def _found(cfg: DictConfig, folders: list[Any]) -> tuple[Tensor, Tensor]:
    """What earlier runs agree on."""
    if not folders or not all(isinstance(folder, str) for folder in folders):
        raise SimudyError(
            f"dummy.start={folders}: give natural, the folder of a run or of a sweep, or a list of "
            "such"
        )
    files = [file for folder in folders for file in reconstructions(user_path(folder))]
    runs = [reconstruction.read(file)[0] for file in files]
    images, labels = consensus([run["images"] for run in runs], [run["labels"] for run in runs])
    kind = "learned" if labels.is_floating_point() else "balanced"
    if cfg.dummy.labels != kind:
        raise SimudyError(
            f"dummy.start brings the labels of its runs along: set dummy.labels={kind}"
        )
    log.info(
        "dummies begin where %d earlier runs agree: %s",
        len(files),
        ", ".join(str(f.parent) for f in files),
    )
    return images, labels


def reconstructions(folder: Path) -> list[Path]:
    """Of a run, or of all runs of a sweep that came to one.

    Raises:
        SimudyError: there is none.
    """
    of_run = RunDirectory(folder).reconstruction
    if files := [of_run] if of_run.exists() else sorted(folder.glob(f"*/{of_run.name}")):
        return files
    raise SimudyError(
        f"no {of_run.name} in {folder} or its folders: give the folder of an earlier run, or of a "
        "sweep"
    )
