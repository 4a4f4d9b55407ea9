"""``task=membership``: which of the candidates the network was trained on, each with a p-value."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from simudy.analysis.calibration import p_values, separation, uniformity
from simudy.analysis.membership_plot import save_membership_plot
from simudy.app.settings import factories
from simudy.app.store.run_directory import RunDirectory
from simudy.app.store.secret import Secret
from simudy.app.tasks import prepare
from simudy.app.tasks.membership.candidates import (
    Named,
    load_named,
    own,
    require_apart,
    together,
)
from simudy.attack.evidence import Evidence
from simudy.attack.membership.outside import RowSpaceTest
from simudy.attack.membership.row_space import NoPower
from simudy.errors import SimudyError
from simudy.files import write_atomically, write_json

log = logging.getLogger(__name__)

SHOWN = 12  # candidates in the printed table
FITTED = 3  # one in so many reference images fits the test and is no yardstick


def membership(cfg: DictConfig, folder: RunDirectory) -> dict[str, Any]:
    """Write ``membership.json``, ``.csv`` and ``.png``: beside an earlier run's evidence it judges
    that, by its own settings.
    """
    alone = True
    if folder.config.exists():
        earlier = folder.settings(cfg)
        alone = earlier.task == "membership"
        asked = {"task": "membership", "membership": cfg.membership}
        cfg = OmegaConf.merge(earlier, asked)  # type: ignore[assignment]
    else:
        folder.claim(cfg)
    device = factories.device(cfg.device)
    held = prepare.prepare_evidence(cfg, folder, device).to(device)
    candidates, reference = _images(cfg, held, prepare.load_secret(cfg, folder))
    found = judge(held, candidates, reference, seed=cfg.seed, folder=folder.root)
    if alone:
        write_json(folder.result, {k: v for k, v in found.items() if k != "candidates"})
    return found


def _images(cfg: DictConfig, held: Evidence, secret: Secret | None) -> tuple[Named, Named]:
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
        aside, others = _halves(own(secret.heldout, member=False), cfg.seed)
        both = aside if candidates is None else own(secret.heldout, member=False)
        reference = both if reference is None else reference
        candidates = candidates or together(own(secret.victim, member=True), others)
    assert candidates is not None and reference is not None
    require_apart(candidates, reference)
    return candidates, reference


def _halves(images: Named, seed: int) -> tuple[Named, Named]:
    """At random, so that either is as likely as the other to hold any image."""
    first, second = _shuffled(len(images), seed).tensor_split(2)
    return images.take(first), images.take(second)


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def judge(
    held: Evidence, candidates: Named, reference: Named, *, seed: int, folder: Path
) -> dict[str, Any]:
    """Score, compare and lay out.

    Args:
        seed: decides which third of the reference fits the test; the rest is what candidates are
            compared with.
        folder: where the files go.
    """
    fitted, rest = _shuffled(len(reference), seed).tensor_split([-(-len(reference) // FITTED)])
    if len(fitted) < 2 or len(rest) < 2:
        raise SimudyError(
            f"{len(reference)} reference images are too few: give 6 or more "
            "(membership.reference, or data.heldout=400 for a victim of simudy's)"
        )
    yardstick = reference.take(rest)
    counts = {"reference": len(rest), "fitted_on": len(fitted), "least_p": 1 / (1 + len(rest))}
    base = {"status": "finished", "method": "row_space", "n": held.n, **counts}
    try:
        test = RowSpaceTest.of(held, reference.take(fitted).normalised(held))
    except NoPower as error:
        log.info("no power: %s", error)
        found = {**base, "power": "none", "why": str(error), "candidates": []}
        write_json(folder / "membership.json", found)
        return found
    scores, against = (test.scores(part.normalised(held)) for part in (candidates, yardstick))
    found = {**base, **_power(test, held), **_rows(candidates, scores, against)}
    write_json(folder / "membership.json", found)
    _write_csv(folder / "membership.csv", found["candidates"])
    members, others = _split(candidates, scores, against)
    save_membership_plot(
        folder / "membership.png",
        {"candidates": scores, "reference": against}
        if candidates.members is None
        else {"members": members, "held-out": others, "reference": against},
        {"row space": (members, others)},
    )
    _announce(found)
    return found


def _power(test: RowSpaceTest, held: Evidence) -> dict[str, Any]:
    """What was asked, and how much it can tell by counting."""
    layer, rank = test.layer, test.space.rank
    load = None if held.n is None else held.n * layer.spots * layer.groups / rank
    known = {
        "name": layer.name, "spots": layer.spots, "rank": rank,
        "size": layer.size * layer.groups, "vectors_per_dimension": load,
    }  # fmt: skip
    return {"power": _words(load), "layer": known}


def _words(load: float | None) -> str:
    if load is None:
        return "unknown: give evidence.n"
    return "full" if load <= 1 else "partial" if load <= 10 else "weak"


def _rows(candidates: Named, scores: Tensor, against: Tensor) -> dict[str, Any]:
    ps = p_values(scores, against)
    members, others = _split(candidates, scores, against)
    known = candidates.members is not None
    apart, even = separation(members, others), uniformity(others, against) if known else None
    truth = [None] * len(scores) if candidates.members is None else candidates.members.tolist()
    fields = zip(candidates.names, truth, scores.tolist(), ps.tolist(), strict=True)
    return {
        "compared": "members with held-out candidates" if known else "candidates with reference",
        "auc": None if apart is None else apart.auc,
        "tpr_at_1_percent": None if apart is None else apart.tpr,
        "below_1_percent": int((ps <= 0.01).sum()),
        "expected_by_chance": 0.01 * len(ps),
        "uniform": None if even is None else even.as_dict(),
        "candidates": [
            dict(zip(("name", "member", "score", "p"), row, strict=True)) for row in fields
        ],
    }


def _split(candidates: Named, scores: Tensor, against: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of members and others; where nobody knows, of candidates and reference."""
    if candidates.members is None:
        return scores, against
    return scores[candidates.members], scores[~candidates.members]


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def _announce(found: dict[str, Any]) -> None:
    layer = found["layer"]
    log.info("asked: %s, rank %d of %d (power: %s)",
             layer["name"], layer["rank"], layer["size"], found["power"])  # fmt: skip
    log.info("%-24s %-8s %8s %8s", "candidate", "member", "score", "p")
    rows = sorted(found["candidates"], key=lambda row: -row["score"])
    for row in rows[:SHOWN]:
        known = {True: "yes", False: "no", None: "?"}[row["member"]]
        log.info("%-24s %-8s %8.3f %8.4f", row["name"][-24:], known, row["score"], row["p"])
    if len(rows) > SHOWN:
        log.info("… and %d more in membership.csv", len(rows) - SHOWN)
    log.info("%d of %d candidates have p ≤ 0.01; by chance %.1f would",
             found["below_1_percent"], len(rows), found["expected_by_chance"])  # fmt: skip
    if found["auc"] is not None:
        log.info("AUC %.4f, found at 1 %% false positives: %.0f %% (%s)",
                 found["auc"], 100 * found["tpr_at_1_percent"], found["compared"])  # fmt: skip
    if found["uniform"] is not None:
        log.info("p-values of held-out candidates against uniform: KS %.3f, p %.3f",
                 found["uniform"]["distance"], found["uniform"]["p"])  # fmt: skip
