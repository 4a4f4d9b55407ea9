"""The last stage: compare with the secret where there is one, and lay out the result for a
person.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from simudy.analysis.gallery import save_gallery
from simudy.analysis.gallery_page import save_gallery_page
from simudy.analysis.report.conclusion import highest_floor
from simudy.analysis.report.document import save_report
from simudy.analysis.score import Score, paper_ssim, score
from simudy.analysis.text.text_gallery import best_first, save_text_gallery, save_text_page
from simudy.analysis.text.text_score import read_text, score_tokens, tokens_right
from simudy.analysis.verdicts import counts_of, verdicts_on
from simudy.app.audit.told import told_of
from simudy.app.store import checkpoint, history, reconstruction
from simudy.app.store.beside import load_agreement
from simudy.app.store.run_directory import RunDirectory, read_result
from simudy.app.store.secret import Secret
from simudy.attack.evidence import Evidence
from simudy.attack.first_layer.off_units import CERTIFIED_BELOW
from simudy.files import write_json
from simudy.victim.data import Normalisation

log = logging.getLogger(__name__)

SCORES = ("ssim_paper", "ssim", "psnr", "mse", "recovered")
SHOWN = 6  # images in the filmstrip


def finish(
    cfg: DictConfig, secret: Secret | None, held: Evidence, folder: RunDirectory
) -> dict[str, Any]:
    """Score, draw and write ``result.json`` last: where it is, everything is."""
    tensors, facts = reconstruction.read(folder.reconstruction)
    images = tensors["images"]
    found = facts["objective"] is not None  # else they are the dummies as they began
    scored = _score(images, secret, cfg.seed) if secret and found else None
    judged = _judged(images, facts, folder)
    result = {"status": facts.pop("status"), **_figures(scored), **judged, **facts}
    if scored and secret and secret.names:
        result["images"] = _by_name(scored, secret.names)
    if scored and secret and secret.alphabet:
        texts = (secret.victim.images, secret.heldout.images)
        result["tokens"] = score_tokens(images, *texts, secret.alphabet)
    told = told_of(cfg, held, result, folder, images)
    told["names"] = secret.names if secret else ()
    _draw(cfg, images, secret, Normalisation(held.mean, held.std), scored, result, told, folder)
    write_json(folder.result, result)
    _announce(result, folder)
    return result


def _score(images: Tensor, secret: Secret, seed: int) -> Score:
    truth, heldout = secret.normalised()
    labels = {"truth_labels": secret.victim.labels, "heldout_labels": secret.heldout.labels}
    return score(
        images, truth, normalisation=secret.normalisation, heldout=heldout, **labels, seed=seed
    )


def _figures(scored: Score | None) -> dict[str, Any]:
    return scored.as_dict() if scored else {**dict.fromkeys(SCORES), "floor": None}


def _by_name(scored: Score, names: Sequence[str]) -> dict[str, Any]:
    """What became of each true image, best first."""
    found = {
        name: {"ssim_paper": pair.ssim_paper, "ssim": pair.ssim, "candidate": pair.paper_index}
        for name, pair in zip(names, scored.pairs, strict=True)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]["ssim_paper"]))


def _judged(images: Tensor, facts: dict[str, Any], folder: RunDirectory) -> dict[str, Any]:
    """A verdict on each image, and how many have which."""
    certificates = facts.get("certificates")
    agreed = load_agreement(folder.agreement, images)
    verdicts = verdicts_on(
        len(images),
        certified=[one < CERTIFIED_BELOW for one in certificates] if certificates else None,
        consistent=agreed["consistent"] if agreed else None,
    )
    return {"verdict_counts": counts_of(verdicts), "verdicts": verdicts}


def _draw(
    cfg: DictConfig,
    images: Tensor,
    secret: Secret | None,
    normalisation: Normalisation,
    scored: Score | None,
    result: dict[str, Any],
    told: dict[str, Any],
    folder: RunDirectory,
) -> None:
    truth = secret.normalised()[0] if secret else None
    snapshots: dict[int, Tensor] = _snapshots(folder)
    # under an ASCII locale Python holds an umlaut of the command line as bytes that no font knows
    name = cfg.name.encode(errors="surrogateescape").decode(errors="replace")
    title = f"{name}: {result['n']} {'texts' if result.get('tokens') else 'images'}"
    drawn = {"title": title, "verdicts": result["verdicts"]}
    if tokens := result.get("tokens"):
        save_text_gallery(folder.gallery, tokens, **drawn)
        save_text_page(folder.gallery_page, tokens, **drawn)
    else:
        drawn["normalisation"] = normalisation
        save_gallery(folder.gallery, truth, images, scored, **drawn)
        save_gallery_page(folder.gallery_page, truth, images, scored, **drawn, names=told["names"])
    save_report(
        folder.report,
        title=title,
        settings=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        result=result,
        history=_curve(folder, truth, snapshots, texts=bool(tokens)),
        truth=truth,
        reconstruction=images,
        filmstrip=_film(snapshots, scored, tokens, secret.alphabet if secret else ""),
        normalisation=normalisation,
        score=scored,
        told=told,
    )


def _film(
    snapshots: dict[int, Tensor],
    scored: Score | None,
    tokens: dict[str, Any] | None,
    alphabet: str,
) -> list[tuple[int, Tensor | list[str]]]:
    """By iteration the images, or texts, that came out best."""
    best = {i: shot[_best(scored, len(shot), tokens)] for i, shot in sorted(snapshots.items())}
    return [(i, read_text(shot, alphabet) if tokens else shot) for i, shot in best.items()]


def _snapshots(folder: RunDirectory) -> dict[int, Tensor]:
    """Those of the search, where they can still be read."""
    try:
        return checkpoint.snapshots(checkpoint.load(folder.checkpoint) or {"snapshots": {}})
    except TypeError:
        return {}


def _curve(
    folder: RunDirectory, truth: Tensor | None, snapshots: dict[int, Tensor], *, texts: bool
) -> list[dict[str, Any]]:
    """The history, with the score of every snapshot beside it; an SSIM is written back too."""
    rows = history.load(folder.history)
    key, measure = ("tokens_right", tokens_right) if texts else ("ssim_paper", paper_ssim)
    for row in rows:
        row["ssim_paper"] = "" if texts else row["ssim_paper"]
        shot = snapshots.get(int(row["iteration"]))
        if truth is not None and shot is not None and bool(torch.isfinite(shot).all()):
            row[key] = measure(shot, truth)
    columns = [{k: v for k, v in row.items() if k != "tokens_right"} for row in rows]
    history.save(folder.history, columns)
    return rows


def _best(scored: Score | None, count: int, tokens: dict[str, Any] | None) -> list[int]:
    """The images that came out best, or the first."""
    if tokens:
        found = (tokens["candidates"][i] for i in best_first(tokens))
        return [k for k in found if 0 <= k < count][: SHOWN // 2]
    if scored is None:
        return list(range(min(SHOWN, count)))
    pairs = sorted(scored.pairs, key=lambda pair: -pair.ssim_paper)
    return [pair.paper_index for pair in pairs if 0 <= pair.paper_index < count][:SHOWN]


def _announce(result: dict[str, Any], folder: RunDirectory) -> None:
    if result.get("ssim_paper") is not None and not result.get("tokens"):
        floor = highest_floor(result)
        words = "ssim_paper %.4f (highest floor %.4f), ssim %.4f, psnr %.1f dB, %.0f %% recovered"
        shown = (
            result["ssim_paper"],
            math.nan if floor is None else floor,
            result.get("ssim") or 0.0,
            result.get("psnr") or 0.0,
            100 * (result.get("recovered") or 0.0),
        )
        log.info(words, *shown)
    if tokens := result.get("tokens"):
        best = highest_floor(tokens) or 0.0
        log.info("tokens right: %.3f (highest floor %.3f)", tokens["right"], best)
    if counts := result.get("verdict_counts"):
        log.info("verdicts: %s", ", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    log.info("gallery: %s", folder.gallery)
    log.info("report:  %s", folder.report)


def announce_finished(folder: RunDirectory) -> dict[str, Any]:
    """Say that there is nothing left to do."""
    result = read_result(folder.result)
    log.info("already %s, nothing to do: remove %s to run again", result["status"], folder.root)
    _announce(result, folder)
    return result
