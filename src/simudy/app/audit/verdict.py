"""``task=verdict``: which images of a run do independent searches confirm?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from simudy.analysis.metrics import WINDOW
from simudy.analysis.verdicts import ALIKE, likeness
from simudy.app.settings.images.start import reconstructions
from simudy.app.store import reconstruction
from simudy.app.store.beside import save_agreement
from simudy.app.store.run_directory import RunDirectory
from simudy.app.store.settings_file import read_raw
from simudy.app.tasks.run import rescore
from simudy.attack.agreement import Agreement, agreement
from simudy.attack.checkpoints.weights import load_weights
from simudy.errors import SimudyError
from simudy.files import user_path

log = logging.getLogger(__name__)

EXPLAINED = 0.05  # distance: what was measured reaches 0.041 (docs/results/verdicts.md)


def verdict(cfg: DictConfig, folder: RunDirectory) -> dict[str, Any]:
    """Compare the run with the searches of ``verdict.runs``, keep what came of it as
    ``agreement.json``, and lay the run's result out anew.

    Raises:
        SimudyError: there is nothing to compare, or a search is not independent of the others.
    """
    if not cfg.verdict.runs:
        raise SimudyError(
            "task=verdict compares searches: set verdict.runs to the folders of others against "
            "the same evidence (evidence.folder=FIRST/evidence seed=…)"
        )
    files = [file for said in cfg.verdict.runs for file in reconstructions(user_path(said))]
    own = folder.reconstruction.resolve()
    others = [RunDirectory(f.parent) for f in files if f.resolve() != own]
    _require_independent([folder, *others])
    _require_fit([folder, *others])
    runs = [reconstruction.read(one.reconstruction)[0] for one in (folder, *others)]
    images = [run["images"] for run in runs]
    _require_pictures(images[0])
    found = agreement(images, [run["labels"] for run in runs])
    facts = _facts(found, likeness(images, found.partners), false_rate=cfg.verdict.false_rate)
    names = [one.root.name for one in others]
    save_agreement(folder.agreement, images[0], {"searches": names, **facts})
    log.info("%d of %d images are consistent", sum(facts["consistent"]), len(facts["consistent"]))
    return rescore(cfg, folder)


def _facts(found: Agreement, alike: Tensor, *, false_rate: float) -> dict[str, Any]:
    beyond_chance = found.consistent(false_rate=false_rate)
    return {
        "false_rate": false_rate,
        "threshold": float(found.unrelated.quantile(1 - false_rate)),
        "unrelated": len(found.unrelated),
        "cosines": found.cosines.tolist(),
        "p_values": found.p_values.tolist(),
        "ssim": alike.tolist(),
        "consistent": (beyond_chance & (alike >= ALIKE)).tolist(),
    }


def _require_independent(runs: list[RunDirectory]) -> None:
    """Against one evidence, each from noise of its own."""
    settings, seeds = [read_raw(run.config) for run in runs], {}
    weights = _final_weights(runs[0], settings[0])
    for run, said in zip(runs, settings, strict=True):
        name, seed = run.root.name, said.get("seed")
        if OmegaConf.select(said, "dummy.start") is not None:
            raise SimudyError(
                f"the search in {name} began at images (dummy.start), so that it may agree with "
                "others for that alone: give searches that began at noise"
            )
        if seed in seeds:
            raise SimudyError(
                f"the searches in {seeds[seed]} and {name} began at the same noise: give runs of "
                "different seed"
            )
        if not _same(weights, _final_weights(run, said)):
            raise SimudyError(
                f"the search in {name} was against other weights: give runs with "
                "evidence.folder set to the evidence of the first"
            )
        seeds[seed] = name


def _require_pictures(images: Tensor) -> None:
    if images.dim() != 4 or min(images.shape[-2:]) < WINDOW:
        raise SimudyError(
            f"verdicts of agreement were measured on pictures of {WINDOW}×{WINDOW} or more, these "
            f"are {tuple(images.shape[1:])}: compare the searches by hand"
        )


def _require_fit(runs: list[RunDirectory]) -> None:
    """What searches have in common before they explain the weights is how they begin to."""
    for run in runs:
        distance = reconstruction.read(run.reconstruction)[1].get("distance")
        if distance is None or not distance <= EXPLAINED:
            told = "none" if distance is None else f"{distance:.2g}"
            raise SimudyError(
                f"the search in {run.root.name} does not explain the weights (distance {told}, "
                f"above {EXPLAINED:g}), and such agree on blurs: give it more outer.iterations"
            )


def _final_weights(run: RunDirectory, said: DictConfig) -> dict[str, Tensor]:
    given = OmegaConf.select(said, "evidence.folder")
    folder: Path = user_path(given) if given else run.evidence
    return load_weights(folder / "final.safetensors")


def _same(weights: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return weights.keys() == other.keys() and all(
        torch.equal(weights[name], other[name]) for name in weights
    )
