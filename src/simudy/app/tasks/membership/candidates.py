"""The images that are asked about, and those known not to have been trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from simudy.app.settings.instantiate import build
from simudy.attack.evidence import Evidence
from simudy.errors import SimudyError
from simudy.files import user_path
from simudy.victim.data import ImageSet, Normalisation, channels_first
from simudy.victim.data.named import Named, read_named
from simudy.victim.data.npz import read_archive
from simudy.victim.data.pixels import as_pixels


@dataclass(frozen=True, eq=False)
class Asked(Named):
    """Images of which it may be known whether they were trained on.

    Attributes:
        members: ``(k,)`` booleans, or None where nobody knows.
    """

    members: Tensor | None = None

    def take(self, rows: Tensor) -> Asked:
        """Those at ``rows``."""
        names = tuple(self.names[i] for i in rows.tolist())
        rest = {k: None if v is None else v[rows] for k, v in self._known().items()}
        return replace(self, images=self.images[rows], names=names, **rest)

    def normalised(self, held: Evidence) -> Tensor:
        """As the network sees them."""
        return Normalisation(held.mean, held.std).normalise(self.images).to(_like(held))

    def _known(self) -> dict[str, Tensor | None]:
        return {"labels": self.labels, "members": self.members}


def own(images: ImageSet, *, member: bool) -> Asked:
    """Images of a secret, of which it is known whether they were trained on."""
    name = "member" if member else "held-out"
    names = tuple(f"{name} {i}" for i in range(len(images)))
    return Asked(images.images, names, images.labels, torch.full((len(images),), member))


def together(first: Asked, second: Asked) -> Asked:
    """Both, one after the other."""
    labels, members = (
        None if a is None or b is None else torch.cat([a, b])
        for a, b in ((first.labels, second.labels), (first.members, second.members))
    )
    images = torch.cat([first.images, second.images])
    return Asked(images, first.names + second.names, labels, members)


def load_named(cfg: DictConfig, key: str, held: Evidence) -> Asked | None:
    """What ``membership.KEY`` names; None where it says nothing.

    Args:
        key: ``candidates`` or ``reference``. Of a node that makes a data source, the first are its
            victim's images, the second its held-out ones.

    Raises:
        SimudyError: nothing is there, or the network does not take it.
    """
    said, where = cfg.membership[key], f"membership.{key}"
    if said is None:
        return None
    if OmegaConf.is_config(said):
        source = build(said, where, keep_nulls=True).load(seed=cfg.seed)
        found = _numbered(source.victim if key == "candidates" else source.heldout)
    else:
        found = _from_path(user_path(said), where, cfg.membership.size, held)
    return _fitting(found, where, held)


def _from_path(path: Path, where: str, size: int | None, held: Evidence) -> Asked:
    if path.is_dir():
        found = read_named(path, where, channels=held.shape[0], size=size)
        return Asked(found.images, found.names)  # sub-folders need not be classes
    if not path.is_file():
        raise SimudyError(f"no file '{path}': set {where} to a folder or .npz file of images")
    arrays = read_archive(path, ("images",), optional=("labels", "members"))
    pixels = channels_first(as_pixels(arrays.pop("images")))
    known = {name: _of_each(array, name, len(pixels), path) for name, array in arrays.items()}
    return Asked(pixels, _numbers(len(pixels)), **known)


def _of_each(array: np.ndarray, name: str, count: int, path: Path) -> Tensor:
    """Whole numbers, or for members booleans, one for each image."""
    kinds = {"labels": "iu", "members": "b"}
    if array.shape != (count,) or array.dtype.kind not in kinds[name]:
        kind = {"labels": "integer", "members": "boolean"}[name]
        raise SimudyError(
            f"{name} in '{path}' are {array.dtype} {array.shape}: give one {kind} per image"
        )
    return torch.as_tensor(array).to(torch.int64 if name == "labels" else torch.bool)


def _numbered(images: ImageSet) -> Asked:
    return Asked(images.images, _numbers(len(images)), images.labels)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _fitting(found: Asked, where: str, held: Evidence) -> Asked:
    if not len(found):
        raise SimudyError(f"{where} holds no image: point it at some")
    if found.images.shape[1:] != held.shape:
        raise SimudyError(
            f"images of {where} are {tuple(found.images.shape[1:])} and the network takes "
            f"{tuple(held.shape)}: set membership.size, or convert them"
        )
    if found.labels is not None and not bool(
        ((found.labels >= 0) & (found.labels < held.classes)).all()
    ):
        raise SimudyError(
            f"labels of {where} are not all among the network's {held.classes} classes: number "
            "them as in training, or leave them out"
        )
    return found


def require_apart(candidates: Asked, reference: Asked) -> None:
    """A reference image among the candidates would be its own yardstick.

    Raises:
        SimudyError: one is.
    """
    known = {_key(image) for image in reference.images}
    twice = [name for name, i in zip(candidates.names, candidates.images, strict=True)
             if _key(i) in known]  # fmt: skip
    if twice:
        raise SimudyError(
            f"{len(twice)} candidates ({twice[0]}, …) are reference images too: take them out of "
            "membership.candidates or membership.reference"
        )


def _key(image: Tensor) -> bytes:
    return (image * 255).round().byte().numpy().tobytes()


def _like(held: Evidence) -> Tensor:
    return next(iter(held.initial.values()))
