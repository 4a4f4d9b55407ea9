"""``task=linearity``: how far the victim's gradients keep their direction while it trains."""

from __future__ import annotations

import logging
from typing import Any

from omegaconf import DictConfig

from simudy.analysis.linearity import run_linearity
from simudy.app import settings
from simudy.app.build import build
from simudy.app.evidence import newborn
from simudy.app.folder import Folder, write_json
from simudy.app.identity import config_hash
from simudy.app.recipe import recipe
from simudy.errors import SimudyError

log = logging.getLogger(__name__)


def linearity(cfg: DictConfig, folder: Folder) -> dict[str, Any]:
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
    device = settings.device(cfg.device)
    splits = build(cfg.data, "data", keep_nulls=True).load(seed=cfg.seed)
    images, labels = (
        splits.normalisation.normalise(splits.victim.images).to(device),
        splits.victim.labels.to(device),
    )
    found = run_linearity(newborn(cfg, splits, device), images, labels, recipe(cfg))
    return {"status": "finished", **found, "config_hash": config_hash(cfg)}
