"""Public images: of the same kind as the victim's, which it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from simudy.app.settings.fingerprint import digest
from simudy.app.settings.instantiate import build, fields_of
from simudy.attack.evidence import Evidence
from simudy.attack.prior.denoiser import Denoiser, Red, fit
from simudy.errors import SimudyError
from simudy.files import user_path
from simudy.tensors import train_once
from simudy.victim.data.images import Normalisation

VICTIMS_OWN = ("n", "heldout", "victim_records", "heldout_records")  # of the settings of data


def public_images(cfg: DictConfig, evidence: Evidence, *, asked: str, instead: str) -> Tensor:
    """Those that data offers for pretraining ``(m, c, h, w)``, normalised as the victim's.

    Args:
        asked, instead: the setting that wants them, and what to do without, for the message.

    Raises:
        SimudyError: there are none, or of another shape.
    """
    splits = build(cfg.data, "data", keep_nulls=True).load(seed=cfg.seed) if cfg.data else None
    if splits is None or splits.pretrain is None:
        raise SimudyError(
            f"{asked} needs public images, and data offers none: choose others, or {instead}"
        )
    images = splits.pretrain.images
    if images.shape[1:] != torch.Size(evidence.shape):
        theirs, ours = ("×".join(map(str, shape)) for shape in (images.shape[1:], evidence.shape))
        raise SimudyError(
            f"{asked} needs public images like the victim's, of {ours}, and those of data are of "
            f"{theirs}: choose others, or {instead}"
        )
    return Normalisation(evidence.mean, evidence.std).normalise(images)


def source(cfg: DictConfig) -> dict[str, object]:
    """The settings of data that its public images depend on."""
    said = fields_of(cfg.data, "data", keep_nulls=True)
    return {name: value for name, value in said.items() if name not in VICTIMS_OWN}


def place_of_network(cfg: DictConfig, *how: object) -> Path:
    """Where a network trained in this way is kept, with this seed."""
    key = digest([*how, cfg.seed, torch.__version__])
    return user_path(cfg.cache) / "pretrained" / f"{key}.safetensors"


def cleaning(cfg: DictConfig, evidence: Evidence) -> Red:
    """The prior that ``prior.denoiser`` weighs; its network learns when first asked, and is kept.

    Raises:
        SimudyError: there are no public images, or of another shape.
    """
    asked = f"prior.denoiser={cfg.prior.denoiser:g}"

    def images() -> Tensor:  # loaded again to train, if that is to be, rather than held throughout
        return public_images(cfg, evidence, asked=asked, instead="set prior.denoiser=0")

    images()
    return Red(lambda: _denoiser(cfg, evidence, images), sigma=cfg.prior.sigma)


def _denoiser(cfg: DictConfig, evidence: Evidence, images: Callable[[], Tensor]) -> Denoiser:
    seed, steps = cfg.seed, cfg.prior.denoiser_steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = Denoiser(evidence.shape[0])

    def train() -> None:
        fit(denoiser, images(), steps=steps, seed=seed)

    normalised = [list(evidence.mean), list(evidence.std)]
    cache = place_of_network(cfg, "denoiser", source(cfg), normalised, steps)
    train_once(denoiser, train, cache=cache, kind="denoiser", again="training it again")
    return denoiser
