"""The first stage: weights before and after training, of a victim trained here, an earlier run or a
person's files.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from simudy.app.settings.check import locate
from simudy.app.settings.factories import loss, recipe
from simudy.app.settings.images.public import place_of_network, source
from simudy.app.settings.instantiate import build, build_partial, drop_nulls, fields_of
from simudy.app.settings.typed import typed
from simudy.app.store.inside import load_inside
from simudy.app.store.run_directory import RunDirectory
from simudy.app.store.secret import Secret
from simudy.app.store.truth import load_truth
from simudy.attack.checkpoints.segments import Checkpoint, evenly
from simudy.attack.evidence import Evidence, evidence_from_weights
from simudy.attack.facts import read_facts
from simudy.errors import SimudyError
from simudy.files import user_path
from simudy.victim.data import Splits
from simudy.victim.pretrain import Pretraining, pretrain
from simudy.victim.publish import Publication, both, noise_of_run, without_noise
from simudy.victim.train import train

log = logging.getLogger(__name__)


def prepare_evidence(cfg: DictConfig, folder: RunDirectory, device: torch.device) -> Evidence:
    """The evidence of this run, made if it is not there yet, and always as it reads from disk.

    Raises:
        SimudyError: settings or files do not fit each other.
    """
    if cfg.evidence.folder:
        return read(cfg, user_path(cfg.evidence.folder))
    if not folder.evidence.exists() and cfg.task in _FROM_THE_START:
        _write(cfg, folder, device)
    return read(cfg, folder.evidence)


def load_secret(cfg: DictConfig, folder: RunDirectory) -> Secret | None:
    """The secret that belongs to the evidence, if there is one: one's own images come first."""
    beside = user_path(cfg.evidence.folder).parent if cfg.evidence.folder else folder.root
    return Secret.load(folder.secret) or Secret.load(RunDirectory(beside).secret)


def lay_down_truth(cfg: DictConfig, folder: RunDirectory, held: Evidence) -> None:
    """The images that ``evidence.truth`` names become the secret of this run.

    Raises:
        SimudyError: they do not fit the evidence, or it has a secret already.
    """
    if (secret := load_truth(cfg, held)) is not None:
        _save_complete(folder.secret, secret.save)


def read(cfg: DictConfig, folder: Path) -> Evidence:
    """Evidence as an earlier stage wrote it."""
    facts = read_facts(folder)
    module = build(cfg.model, "model", shape=facts["shape"], classes=facts["classes"])
    locate(
        fields_of(cfg.inner, "inner")["_target_"], "inner"
    )  # a rule of one's own, which the file may name then
    if cfg.recipe.augment and cfg.recipe.augment.get("_target_"):
        locate(cfg.recipe.augment["_target_"], "recipe.augment")
    return Evidence.load(folder, module)


def _write(cfg: DictConfig, folder: RunDirectory, device: torch.device) -> None:
    if cfg.evidence.initial or cfg.evidence.final:
        _save_complete(folder.evidence, load_files(cfg).save)
        return
    if cfg.evidence.truth is not None:
        raise SimudyError(
            "evidence.truth judges weights of yours: set evidence.initial and evidence.final, or "
            "evidence.folder"
        )
    splits: Splits = build(cfg.data, "data", keep_nulls=True).load(seed=cfg.seed)
    evidence = train_victim(cfg, splits, device)
    parts = (splits.victim, splits.heldout, splits.normalisation)
    _save_complete(folder.secret, Secret(*parts, alphabet=splits.alphabet).save)
    _save_complete(folder.evidence, evidence.save)


def _save_complete(folder: Path, save: Callable[[Path], None]) -> None:
    """A folder that is there once it is complete."""
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    save(draft)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(draft, folder)


def train_victim(cfg: DictConfig, splits: Splits, device: torch.device) -> Evidence:
    """Train the victim by the recipe, after pretraining if asked to."""
    victim, normalisation, run = splits.victim, splits.normalisation, recipe(cfg)
    images, labels = normalisation.normalise(victim.images).to(device), victim.labels.to(device)
    module = build_victim(cfg, splits, device)
    steps = run.steps(len(victim))
    keep = evenly(cfg.victim.checkpoints, steps)
    model, final, kept = train(module, images, labels, run, loss=loss(cfg), keep=keep)
    log.info("victim: trained on %d images for %d steps", len(victim), steps)
    shown = Publication(**_plain(cfg.victim.publish), seed=cfg.seed)(model.params, final)
    return Evidence(
        model,
        model.params,
        shown.weights,
        without_noise(run),
        victim.shape,
        len(victim.classes),
        len(victim),
        normalisation.mean,
        normalisation.std,
        precision=shown.precision,
        hidden=both(shown.hidden, noise_of_run(run, model.params, len(victim))),
        checkpoints=tuple(map(Checkpoint, keep, kept)),
    )


def build_victim(cfg: DictConfig, splits: Splits, device: torch.device) -> nn.Module:
    """The victim before its own training, pretrained if asked for, in the mode it will be trained
    in.
    """
    module = _new_module(cfg, splits.victim.shape, len(splits.victim.classes)).to(device)
    if cfg.victim.pretrain.epochs:
        _pretrain(cfg, module, splits, device)
    return module.train(cfg.victim.mode == "train")


def load_files(cfg: DictConfig) -> Evidence:
    """Evidence from two files of weights and what a person says of their origin."""
    said = cfg.evidence
    if not (said.initial and said.final):
        raise SimudyError(
            "evidence.initial and evidence.final come together: give weights of before and after"
        )
    shape, classes = _said(cfg, "shape"), _said(cfg, "classes")
    _require_pictures(shape)
    module = build(cfg.model, "model", shape=shape, classes=classes)
    facts = {"shape": tuple(shape), "classes": classes, **_normalisation(said, shape[0])}
    run = recipe(cfg)
    told = {"mode": cfg.victim.mode, "part": said.part, "n": said.n, "typed": typed(cfg)}
    files = load_inside(module, said, run)
    return evidence_from_weights(module, recipe=run, loss=loss(cfg), **files, **told, **facts)


def _require_pictures(shape: list[int]) -> None:
    if len(shape) != 3:
        raise SimudyError(
            f"evidence.shape={shape}: the command draws and scores pictures, [c,h,w]; rows of a "
            "table and volumes are reconstructed from Python (evidence_from_weights, reconstruct)"
        )


def _said(cfg: DictConfig, name: str) -> Any:
    """A fact about the images, told under ``evidence`` or among the model's own options."""
    for where in ("evidence", "model"):
        if (value := OmegaConf.select(cfg, f"{where}.{name}")) is not None:
            return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
    example = {"shape": "[3,32,32]", "classes": "10"}[name]
    raise SimudyError(
        f"evidence.{name} is not set: say what the model was trained on, as in "
        f"evidence.{name}={example}"
    )


def _normalisation(said: DictConfig, channels: int) -> dict[str, tuple[float, ...]]:
    mean, std = tuple(said.mean), tuple(said.std)
    if not {len(mean), len(std)} <= {1, channels} or not all(
        math.isfinite(s) and s > 0 for s in std
    ):
        raise SimudyError(
            f"evidence.mean and evidence.std take {channels} numbers each (or one), std above 0"
        )
    return {"mean": mean, "std": std}


def _new_module(cfg: DictConfig, shape: tuple[int, ...], classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        module = build(cfg.model, "model", shape=shape, classes=classes)
        _require_fit(module, shape, classes)
    return module


def _require_fit(module: Any, shape: tuple[int, ...], classes: int) -> None:
    """Whether a model takes the images and tells the classes apart."""
    if not isinstance(module, nn.Module):
        raise SimudyError(f"model makes a {type(module).__name__}: set model._target_ to a network")
    try:
        with torch.no_grad():
            logits = copy.deepcopy(module).eval()(torch.zeros(2, *shape))
    except Exception as error:  # a network of one's own raises what it likes
        reason = " ".join(str(error).split())[:200]
        raise SimudyError(
            f"the model does not take images of {tuple(shape)} ({reason}): set model.shape and its "
            "other sizes, or data.size"
        ) from error
    if not isinstance(logits, torch.Tensor) or len(logits) != 2 or logits.shape[-1] < classes:
        raise SimudyError(f"the model does not tell {classes} classes apart: set model.classes")


def _pretrain(cfg: DictConfig, module: nn.Module, splits: Splits, device: torch.device) -> None:
    if splits.pretrain is None:
        raise SimudyError(
            "data has no images to pretrain on: choose others, or set victim.pretrain.epochs=0"
        )
    images = splits.normalisation.normalise(splits.pretrain.images).to(device)
    said = drop_nulls(_plain(cfg.victim.pretrain))
    if "optimizer" in said:
        said["optimizer"] = build_partial(said["optimizer"], "victim.pretrain.optimizer")
    pretrain(
        module,
        images,
        splits.pretrain.labels.to(device),
        Pretraining(**said),
        cache=_cache(cfg),
        seed=cfg.seed,
    )


def _cache(cfg: DictConfig) -> Path:
    """Where a network pretrained in this way is kept."""
    how = {k: v for k, v in _plain(cfg.victim.pretrain).items() if k != "new_head"}
    return place_of_network(cfg, source(cfg), _plain(cfg.model), how)


_FROM_THE_START = ("run", "victim", "size", "membership", "exposure")


def _plain(node: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]
