"""A person's own images as the secret of an audit: what the scorer compares with."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import Dataset

from simudy.app.settings.instantiate import build
from simudy.app.store.secret import UNLABELLED, Secret, classes_in
from simudy.attack.evidence import Evidence
from simudy.errors import SimudyError
from simudy.files import user_path
from simudy.victim.data import ImageSet, Normalisation
from simudy.victim.data.named import Named, named_of_dataset, read_named

log = logging.getLogger(__name__)


def load_truth(cfg: DictConfig, held: Evidence) -> Secret | None:
    """What ``evidence.truth`` and ``evidence.heldout`` name; None where they say nothing.

    Args:
        held: the evidence they belong to, whose shape, number and normalisation they have to fit.

    Raises:
        SimudyError: they cannot be read, or do not fit.
    """
    said = cfg.evidence
    if said.truth is None:
        if said.heldout is not None:
            raise SimudyError("evidence.heldout is for the floors: set evidence.truth too")
        return None
    truth = _read(cfg, "truth", held)
    others = None if said.heldout is None else _read(cfg, "heldout", held)
    if held.n is not None and len(truth) != held.n:
        raise SimudyError(
            f"evidence.truth holds {len(truth)} images and the run had {held.n}: give all of them, "
            "and none besides, or correct evidence.n"
        )
    if others is None:
        log.warning("no evidence.heldout: the floor of other images than hers is not known")
    return _secret(truth, others, held)


def _read(cfg: DictConfig, key: str, held: Evidence) -> Named:
    said, where = cfg.evidence[key], f"evidence.{key}"
    if OmegaConf.is_config(said):
        found = _made(build(said, where), where, cfg, key)
    else:
        found = read_named(user_path(said), where, channels=held.shape[0])
    found = dataclasses.replace(found, labels=_as_trained(found.labels, held.classes))
    if tuple(found.images.shape[1:]) != held.shape:
        raise SimudyError(
            f"images of {where} are {tuple(found.images.shape[1:])} and the network takes "
            f"{held.shape}: give them as they were trained on"
        )
    if (
        found.labels is not None
        and _whole(found.labels)
        and not _within(found.labels, held.classes)
    ):
        raise SimudyError(
            f"labels of {where} run from {int(found.labels.min())} to {int(found.labels.max())} "
            f"and evidence.classes={held.classes}: number the classes from 0"
        )
    return found


def _made(source: Any, where: str, cfg: DictConfig, key: str) -> Named:
    """The images of a dataset, or the victim's or held-out ones of a data source."""
    if hasattr(source, "load"):
        splits = source.load(seed=cfg.seed)
        images: ImageSet = splits.victim if key == "truth" else splits.heldout
        return Named(images.images, tuple(map(str, range(len(images)))), images.labels)
    if not isinstance(source, Dataset) and not hasattr(source, "__getitem__"):
        raise SimudyError(
            f"{where}._target_ makes a {type(source).__name__}: name a torch dataset or a source"
        )
    return named_of_dataset(source)


def _as_trained(labels: Tensor | None, classes: int) -> Tensor | None:
    """Class numbers, where that is all that they say; of a network of one class, real numbers."""
    if labels is None or classes == 1:
        return None if labels is None else labels.float()
    known = None if _whole(labels) else classes_in(labels, classes)
    return labels if known is None or labels.numel() > len(labels) else known


def _whole(labels: Tensor) -> bool:
    return labels.ndim == 1 and not labels.is_floating_point()


def _within(labels: Tensor, classes: int) -> bool:
    return bool(((labels >= 0) & (labels < classes)).all())


def _secret(truth: Named, others: Named | None, held: Evidence) -> Secret:
    nothing = Named(truth.images[:0], (), None if truth.labels is None else truth.labels[:0])
    parts = truth, nothing if others is None else others
    known = all(part.labels is not None and _whole(part.labels) for part in parts)
    real = None if truth.labels is None or _whole(truth.labels) else truth.labels
    classes = tuple(map(str, range(held.classes))) if known else UNLABELLED
    victim, heldout = (
        ImageSet(part.images, _labels(part) if known else _none(part), classes) for part in parts
    )
    return Secret(victim, heldout, Normalisation(held.mean, held.std), truth.names, real)


def _labels(part: Named) -> Tensor:
    assert part.labels is not None
    return part.labels


def _none(part: Named) -> Tensor:
    """One class for all: its mean is that of all images."""
    return torch.zeros(len(part), dtype=torch.int64)
