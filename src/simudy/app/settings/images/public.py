"""Public images: of the same kind as the victim's, which it was not trained on."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from simudy.app.settings.fingerprint import digest
from simudy.app.settings.instantiate import build
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
    plain = OmegaConf.to_container(cfg.data, resolve=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items() if k not in VICTIMS_OWN}


def cleaning(cfg: DictConfig, evidence: Evidence) -> Red:
    """The prior that ``prior.denoiser`` weighs; its network learns when first asked, and is kept.

    Raises:
        SimudyError: there are no public images, or of another shape.
    """
    said, normalised = cfg.prior, [list(evidence.mean), list(evidence.std)]
    asked = f"prior.denoiser={said.denoiser:g}"
    images = public_images(cfg, evidence, asked=asked, instead="set prior.denoiser=0")
    how = [said.denoiser_steps, cfg.seed, torch.__version__]
    key = digest(["denoiser", source(cfg), normalised, *how])
    cache = user_path(cfg.cache) / "pretrained" / f"{key}.safetensors"
    return Red(lambda: _denoiser(images, said.denoiser_steps, cfg.seed, cache), sigma=said.sigma)


def _denoiser(images: Tensor, steps: int, seed: int, cache: Path) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = Denoiser(images.shape[1])

    def train() -> None:
        fit(denoiser, images, steps=steps, seed=seed)

    with torch.enable_grad():
        train_once(denoiser, train, cache=cache, kind="denoiser", again="training it again")
    return denoiser
