"""``task=linearity``: how far the victim's gradients keep their direction while it trains."""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import DictConfig

from simudy.analysis.linearity import run_linearity
from simudy.app.settings import factories
from simudy.app.settings.factories import recipe
from simudy.app.settings.fingerprint import config_hash
from simudy.app.settings.instantiate import build
from simudy.app.store.run_directory import RunDirectory
from simudy.app.tasks.prepare import build_victim
from simudy.errors import SimudyError
from simudy.files import write_json

log = logging.getLogger(__name__)


def linearity(cfg: DictConfig, folder: RunDirectory) -> dict[str, Any]:
    """Train the victim of these settings, and write M_lin to ``result.json``."""
    if cfg.evidence.folder or cfg.evidence.initial:
        raise SimudyError(
            "task=linearity trains a victim on known images: leave evidence out, and set data and "
            "model"
        )
    folder.claim(cfg)
    result = folder.finished() or _measured(cfg)
    write_json(folder.result, result)
    figures = (result["m_lin"], result["n"], result["epochs"], result["parameters"])
    log.info("M_lin %.4f (%d images, %d epochs, %s parameters)", *figures)
    return result


def _measured(cfg: DictConfig) -> dict[str, Any]:
    device = factories.device(cfg.device)
    splits = build(cfg.data, "data", keep_nulls=True).load(seed=cfg.seed)
    images, labels = (
        splits.normalisation.normalise(splits.victim.images).to(device),
        splits.victim.labels.to(device),
    )
    found = run_linearity(build_victim(cfg, splits, device), images, labels, recipe(cfg))
    return {"status": "finished", **found, "config_hash": config_hash(cfg)}
