"""``task=size``: how many images there were, by the rank of the displacement and by what each dummy
contributed.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from simudy.analysis.score import paper_pairing, paper_ssim
from simudy.app.settings import factories
from simudy.app.store import reconstruction
from simudy.app.store.run_directory import RunDirectory
from simudy.app.store.secret import Secret
from simudy.app.tasks import prepare
from simudy.app.translate import in_settings
from simudy.attack.evidence import Evidence
from simudy.attack.methods.simudy import SimudyProblem
from simudy.attack.size import contributions, keep_top, matched_table, rank_estimate
from simudy.errors import SimudyError
from simudy.files import write_json

log = logging.getLogger(__name__)


def size(cfg: DictConfig, folder: RunDirectory) -> dict[str, Any]:
    """Write ``size.json``: beside an earlier run's reconstruction it ranks that run's dummies, by
    its own settings.
    """
    ran = folder.reconstruction.exists()
    if ran:
        found_here = {
            "task": "size",
            "dummy": {"start": None},
        }  # where the dummies began does not matter any more
        cfg = OmegaConf.merge(folder.settings(cfg), found_here)  # type: ignore[assignment]
    else:
        folder.claim(cfg)
    device = factories.device(cfg.device)
    held = prepare.prepare_evidence(cfg, folder, device).to(device)
    found = {"status": "finished", "n": held.n, **_rank(cfg, held)}
    if ran:
        found["dummies"] = _dummies(
            cfg, held, prepare.load_secret(cfg, folder), folder.reconstruction
        )
    write_json(folder.root / "size.json", found)
    if not ran:
        write_json(folder.result, found)
    return found


def _rank(cfg: DictConfig, held: Evidence) -> dict[str, Any]:
    try:
        estimate = rank_estimate(held)
    except SimudyError as error:
        log.info("no rank: %s", in_settings(str(error), cfg))
        return {"rank": None, "gap": None}
    log.info("rank of the first layer's displacement: %d (gap %.3g)", estimate.n, estimate.gap)
    return {
        "rank": estimate.n,
        "gap": min(estimate.gap, torch.finfo(torch.float64).max),
    }  # json knows no infinity


def _dummies(cfg: DictConfig, held: Evidence, secret: Secret | None, path: Path) -> dict[str, Any]:
    tensors, _ = reconstruction.read(path, device=str(next(iter(held.initial.values())).device))
    worth = contributions(_restored(cfg, held, tensors))
    found: dict[str, Any] = {"contributions": worth.tolist()}
    log.info(
        "contributions, highest first: %s",
        " ".join(f"{x:.3g}" for x in worth.sort(descending=True).values),
    )
    return (
        found
        if secret is None
        else {**found, **_judged(tensors["images"], worth, secret.normalised()[0])}
    )


def _restored(cfg: DictConfig, held: Evidence, tensors: dict[str, Tensor]) -> SimudyProblem:
    """The attack's problem with its dummies where the search left them."""
    method: Any = factories.method(cfg, held, labels=tensors["labels"])
    if method.adjoint is None:
        raise SimudyError("only dummies of a simulated run can be ranked: run attack=simudy there")
    method = dataclasses.replace(method, n=len(tensors["images"]))
    problem = method.problem(held, seed=cfg.seed)
    learned = {name: tensors[f"learned.{name}"] for name in method.learn}
    problem.restore(tensors["images"], tensors["labels"], learned)
    return problem


def _judged(images: Tensor, worth: Tensor, truth: Tensor) -> dict[str, Any]:
    """What only a holder of the secret can say: which dummies are real, and the score of as many as
    there were.
    """
    match = paper_pairing(images, truth)[0]
    kept = keep_top(images, worth, min(len(truth), len(images)))
    table = matched_table(worth, match)
    scores = {
        "ssim_paper_of_all": paper_ssim(images, truth),
        "ssim_paper_of_top": paper_ssim(kept, truth),
    }
    log.info("matched %s, unmatched %s", table["matched"], table["unmatched"])
    log.info("ssim_paper %.4f of all, %.4f of the top %d", *scores.values(), len(kept))
    return {**table, **scores}
