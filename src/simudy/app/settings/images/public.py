"""Public images: of the same kind as the victim's, which it was not trained on."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from simudy.app.settings.fingerprint import digest
from simudy.app.settings.instantiate import build
from simudy.attack.prior.denoiser import Denoiser, Red, fit
from simudy.errors import SimudyError
from simudy.files import user_path
from simudy.tensors import train_once

VICTIMS_OWN = ("n", "heldout", "victim_records", "heldout_records")  # of the settings of data


def public_images(cfg: DictConfig, *, asked: str, instead: str) -> Tensor:
    """Those that data offers for pretraining, normalised ``(m, c, h, w)``.

    Args:
        asked, instead: the setting that wants them, and what it is set to without, for the message.

    Raises:
        SimudyError: there are none.
    """
    splits = build(cfg.data, "data", keep_nulls=True).load(seed=cfg.seed) if cfg.data else None
    if splits is None or splits.pretrain is None:
        raise SimudyError(
            f"{asked} needs public images, and data offers none: choose others, or {instead}"
        )
    return splits.normalisation.normalise(splits.pretrain.images)


def source(cfg: DictConfig) -> dict[str, object]:
    """The settings of data that its public images depend on."""
    plain = OmegaConf.to_container(cfg.data, resolve=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items() if k not in VICTIMS_OWN}


def cleaning(cfg: DictConfig) -> Red:
    """The prior that ``prior.denoiser`` weighs; its network learns when first asked, and is kept.

    Raises:
        SimudyError: there are no public images.
    """
    said = cfg.prior
    asked = f"prior.denoiser={said.denoiser:g}"
    images = public_images(cfg, asked=asked, instead="set prior.denoiser=0")
    key = digest(["denoiser", source(cfg), said.denoiser_steps, cfg.seed, torch.__version__])
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
