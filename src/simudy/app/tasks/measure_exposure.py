"""``task=exposure``: how much of each training image the published weights determine."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from omegaconf import DictConfig

from simudy import stopping
from simudy.analysis.exposure.bound import ASSUMPTIONS, Exposure, LinearisedRun, bias, exposure
from simudy.analysis.exposure.exposure_plot import save_exposure_plot
from simudy.app.settings import factories
from simudy.app.settings.fingerprint import config_hash
from simudy.app.store.run_directory import RunDirectory
from simudy.app.store.secret import Secret
from simudy.app.tasks import prepare
from simudy.app.tasks.run import beside_a_run, report_anew
from simudy.attack.checkpoints.findings import rounding_variance
from simudy.attack.evidence import Evidence
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError
from simudy.files import read_json, write_json
from simudy.ranges import COUNT, MEASURED

log = logging.getLogger(__name__)
Figure = Annotated[float | None, MEASURED]


class _Row(TypedDict):
    """One image in ``exposure.json``."""

    image: int
    dimensions: Figure
    share: Figure
    psnr_bound: Figure
    bits: Figure
    error: Figure


class _Begun(TypedDict, total=False):
    """The part of ``exposure.json`` that is gone on from."""

    config_hash: str
    images: list[_Row]
    precision: str
    d: Annotated[int, COUNT]


def measure(cfg: DictConfig, folder: RunDirectory) -> dict[str, Any]:
    """Write ``exposure.json`` and ``exposure.png``; what was measured already is not again. Beside
    an earlier run it measures that one's evidence, by its own settings, and leaves its result.

    Raises:
        SimudyError: the images are not known.
    """
    own, alone = beside_a_run(cfg, folder)
    if alone:
        folder.claim(cfg)
    cfg = own
    device = factories.device(cfg.device)
    held = prepare.prepare_evidence(cfg, folder, device)
    prepare.lay_down_truth(cfg, folder, held)
    secret = prepare.load_secret(cfg, folder)
    if secret is None:
        raise SimudyError(
            "task=exposure is an owner's: it needs the images that the weights were trained on, so "
            "train the victim here, set evidence.truth, or evidence.folder to a run with a secret"
        )
    path = folder.exposure
    rows = _begun(path, config_hash(cfg))
    _measure_rest(cfg, held.to(device), secret, rows, path)
    found = _report(cfg, held, rows)
    write_json(path, {**found, "status": "finished"})
    save_exposure_plot(folder.root / "exposure.png", found["images"], floor=found["psnr_floor"])
    if alone:
        write_json(folder.result, {"status": "finished", **_headline(found)})
    _tell(found)
    report_anew(cfg, folder)
    return found


def _measure_rest(
    cfg: DictConfig, held: Evidence, secret: Secret, rows: list[dict[str, Any]], path: Path
) -> None:
    asked, done = cfg.exposure, {row["image"] for row in rows}
    count = min(asked.images or len(secret.victim), len(secret.victim))
    todo = [i for i in range(count) if i not in done]
    if not todo:
        return
    run, off = _linearised(cfg, held, secret)
    log.info("the linearised run ends at 1 − cos = %.2e from the real one", off)
    for index in todo:
        stopping.check()
        options = {"prior": asked.prior, "starts": asked.starts, "steps": asked.steps}
        found = exposure(run, index, **options, seed=cfg.seed)
        rows.append({"image": index, **dataclasses.asdict(found), "bias": off})
        log.info("image %d: %s", index, _words(found))
        write_json(path, {"status": "running", **_report(cfg, held, rows)})


def _linearised(cfg: DictConfig, held: Evidence, secret: Secret) -> tuple[LinearisedRun, float]:
    """In float64: what is measured lies below float32's rounding."""
    wide = torch.float64
    model = held.model.to(wide)
    like = next(iter(held.initial.values()))
    initial, final = (
        {k: v.to(wide) for k, v in weights.items()} for weights in (held.initial, held.final)
    )
    images, labels = secret.normalised()[0].to(like.device, wide), secret.true_targets
    if labels is None:
        raise SimudyError(
            "task=exposure needs what the images were trained towards: give evidence.truth their "
            "classes as sub-folders, or an .npz file with labels (whole or real)"
        )
    labels = labels.to(wide) if labels.is_floating_point() else labels
    run = LinearisedRun(
        model.loss,
        initial,
        images,
        labels.to(like.device),
        held.recipe,
        noise=noise(held, added=cfg.exposure.noise),
        scale=1 / torch.tensor(held.std, dtype=wide, device=like.device).reshape(-1, 1, 1),
        smooth=cfg.exposure.smooth,
    )
    return run, bias(run, initial, final)


def noise(held: Evidence, *, added: float = 0.0) -> Params:
    """Standard deviation of what hides each published weight: its rounding, uniform within half a
    spacing, and what was added on purpose. One that is zero, and did not begin so, was pruned, and
    hidden altogether.
    """
    found = {}
    for name, weight in held.final.items():
        known = added**2 + held.hidden.get(name, 0.0) ** 2
        std = (rounding_variance(weight, held.published) + known).sqrt()
        pruned = (weight == 0) & (held.initial[name] != 0)
        found[name] = torch.where(pruned, math.inf, std.double())
    return found


def _begun(path: Path, hashed: str) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = read_json(path, _Begun, f"remove it, or {path.parent}, and measure again")
    return list(found.get("images", [])) if found.get("config_hash") == hashed else []


def _report(cfg: DictConfig, held: Evidence, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ranked, the most exposed first."""
    ranked = sorted(rows, key=lambda row: -row["psnr_bound"])
    return {
        "config_hash": config_hash(cfg),
        "precision": str(held.published).removeprefix("torch."),
        "d": math.prod(held.shape),
        "psnr_floor": -20 * math.log10(cfg.exposure.prior),
        "smooth": cfg.exposure.smooth,
        "assumptions": list(ASSUMPTIONS),
        "images": ranked,
    }


def _headline(found: dict[str, Any]) -> dict[str, Any]:
    rows = found["images"]
    bounds = torch.tensor([row["psnr_bound"] for row in rows])
    return {
        "n": len(rows),
        "psnr_bound": float(bounds.mean()),
        "share_determined": float(torch.tensor([row["share"] for row in rows]).mean()),
        "psnr_floor": found["psnr_floor"],
        "config_hash": found["config_hash"],
    }


def _words(found: Exposure) -> str:
    if found.says_nothing:
        return "the weights say nothing"
    told = (found.dimensions, 100 * found.share, found.psnr_bound, found.error, found.bits)
    return "%.0f dimensions (%.1f %%), PSNR at most %.1f ± %.1f dB, %.0f bits" % told  # noqa: UP031


def _tell(found: dict[str, Any]) -> None:
    log.info("most exposed first: %s", " ".join(str(row["image"]) for row in found["images"]))
    log.info("without any weights, at the prior: %.1f dB", found["psnr_floor"])
    for assumption in found["assumptions"]:
        log.info("assumed: %s", assumption)
