"""``task=membership``: which of the candidates the network was trained on, each with a p-value."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from simudy.analysis.calibration import p_values, separation, uniformity
from simudy.app.settings import factories
from simudy.app.store.run_directory import RunDirectory
from simudy.app.store.secret import Secret
from simudy.app.tasks import prepare
from simudy.app.tasks.membership.candidates import (
    Asked,
    load_named,
    own,
    require_apart,
    together,
)
from simudy.app.tasks.membership.laid_out import Scores, announce, lay_out
from simudy.app.tasks.run import beside_a_run, report_anew
from simudy.attack.evidence import Evidence
from simudy.attack.membership.memorised import loss_scores
from simudy.attack.membership.outside import RowSpaceTest
from simudy.attack.membership.row_space import NoPower
from simudy.errors import SimudyError
from simudy.files import write_json

log = logging.getLogger(__name__)

FITTED = 3  # one in so many reference images fits the test and is no yardstick


def membership(cfg: DictConfig, folder: RunDirectory) -> dict[str, Any]:
    """Write ``membership.json``, ``.csv`` and ``.png``: beside an earlier run's evidence it judges
    that, by its own settings.
    """
    cfg, alone = beside_a_run(cfg, folder)
    device = factories.device(cfg.device)
    held = prepare.prepare_evidence(cfg, folder, device).to(device)
    candidates, reference = _images(cfg, held, prepare.load_secret(cfg, folder))
    found, scores = judge(held, candidates, reference, seed=cfg.seed)
    lay_out(found, scores, folder.root)
    announce(found)
    if alone:
        write_json(folder.result, {k: v for k, v in found.items() if k != "candidates"})
    report_anew(cfg, folder)
    return found


def _images(cfg: DictConfig, held: Evidence, secret: Secret | None) -> tuple[Asked, Asked]:
    """Who is asked about, and against whom."""
    candidates = load_named(cfg, "candidates", held)
    reference = load_named(cfg, "reference", held)
    if secret is None and (candidates is None or reference is None):
        lacking = "candidates" if candidates is None else "reference"
        what = "images to ask about" if candidates is None else "images surely not trained on"
        raise SimudyError(
            f"membership.{lacking} is not set: give {what}, as a folder or an .npz file"
        )
    if secret is not None:
        heldout = own(secret.heldout, member=False)
        aside, others = _halves(heldout, cfg.seed)
        if reference is None:
            reference = aside if candidates is None else heldout
        candidates = candidates or together(own(secret.victim, member=True), others)
    assert candidates is not None and reference is not None
    require_apart(candidates, reference)
    return candidates, reference


def _halves(images: Asked, seed: int) -> tuple[Asked, Asked]:
    """At random, so that either is as likely as the other to hold any image."""
    first, second = _shuffled(len(images), seed).tensor_split(2)
    return images.take(first), images.take(second)


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def judge(
    held: Evidence, candidates: Asked, reference: Asked, *, seed: int
) -> tuple[dict[str, Any], dict[str, Scores]]:
    """What ``membership.json`` holds, and the scores by their names: ``row space``, and ``loss``
    where labels are known.

    Args:
        seed: decides which third of the reference fits the test; the rest is what candidates are
            compared with.

    Raises:
        SimudyError: the reference is too small, or no layer of the model was trained.
    """
    fitted, yardstick = _parted(reference, seed)
    counts = {"reference": len(yardstick), "fitted_on": len(fitted)}
    found = {"status": "finished", "method": "row_space", "n": held.n, **counts}
    found["least_p"] = 1 / (1 + len(yardstick))
    try:
        test = RowSpaceTest.of(held, fitted.normalised(held))
    except NoPower as error:
        return {**found, "power": "none", "why": str(error), "candidates": []}, {}
    scores = _scores(test, held, candidates, yardstick)
    return {**found, **_asked(test, held), **_figures(candidates, scores)}, scores


def _parted(reference: Asked, seed: int) -> tuple[Asked, Asked]:
    """What fits the test, and what candidates are compared with."""
    if len(reference) < 2 * FITTED:
        raise SimudyError(
            f"{len(reference)} reference images are too few: give {2 * FITTED} or more "
            "(membership.reference; for a victim trained here data.heldout=400)"
        )
    order = _shuffled(len(reference), seed + 1)  # another draw than that of the halves
    fitted, rest = order.tensor_split([-(-len(reference) // FITTED)])
    return reference.take(fitted), reference.take(rest)


def _scores(
    test: RowSpaceTest, held: Evidence, candidates: Asked, yardstick: Asked
) -> dict[str, Scores]:
    asked, known = candidates.normalised(held), yardstick.normalised(held)
    members = candidates.members
    found = {"row space": Scores(test.scores(asked).cpu(), test.scores(known).cpu(), members)}
    if candidates.labels is not None and yardstick.labels is not None:
        by_loss = partial(loss_scores, test, held)
        losses = by_loss(asked, candidates.labels), by_loss(known, yardstick.labels)
        found["loss"] = Scores(losses[0].cpu(), losses[1].cpu(), members)
    return found


def _asked(test: RowSpaceTest, held: Evidence) -> dict[str, Any]:
    """What was asked, and how much it can tell by counting."""
    layer, rank = test.layer, test.space.rank
    load = None if held.n is None else held.n * layer.spots * layer.groups / rank
    size = layer.size * layer.groups
    asked = {"name": layer.name, "spots": layer.spots, "rank": rank, "size": size}
    return {"power": _words(load), "layer": {**asked, "vectors_per_dimension": load}}


def _words(load: float | None) -> str:
    if load is None:
        return "unknown: give evidence.n"
    return "full" if load <= 1 else "partial" if load <= 10 else "weak"


def _figures(candidates: Asked, scores: dict[str, Scores]) -> dict[str, Any]:
    """Over all candidates, and of each."""
    own_scores, known = scores["row space"], candidates.members is not None
    ps = {name: p_values(s.candidates, s.reference) for name, s in scores.items()}
    apart = {name: separation(*s.two()) for name, s in scores.items()}
    even = uniformity(own_scores.two()[1], own_scores.reference) if known else None
    first, second = apart["row space"], apart.get("loss")
    return {
        "compared": "members with held-out candidates" if known else "candidates with reference",
        "auc": None if first is None else first.auc,
        "tpr_at_1_percent": None if first is None else first.tpr,
        "below_1_percent": int((ps["row space"] <= 0.01).sum()),
        "expected_by_chance": 0.01 * len(candidates),
        "uniform": None if even is None else even.as_dict(),
        "loss": None if second is None else second.as_dict(),
        "candidates": _rows(candidates, own_scores, ps),
    }


def _rows(candidates: Asked, scores: Scores, ps: dict[str, Tensor]) -> list[dict[str, Any]]:
    count = len(candidates)
    truth = [None] * count if candidates.members is None else candidates.members.tolist()
    by_loss = ps["loss"].tolist() if "loss" in ps else [None] * count
    columns = (
        candidates.names,
        truth,
        scores.candidates.tolist(),
        ps["row space"].tolist(),
        by_loss,
    )
    names = ("name", "member", "score", "p", "p_by_loss")
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
