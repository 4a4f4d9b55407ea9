"""The secret on disk: the true images, and the controls beside them. For the scorer alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

import torch
from safetensors.torch import save
from torch import Tensor

from simudy.errors import SimudyError
from simudy.files import read_json, write_atomically, write_json
from simudy.ranges import POSITIVE, Length
from simudy.tensors import read_tensors
from simudy.victim.data import ImageSet, Normalisation

PARTS = ("victim", "heldout")
TARGETS = "victim_targets"
UNLABELLED = ("unknown",)  # the classes of images whose classes nobody gave
REMEDY = "remove its folder and run again"


class _Required(TypedDict):
    classes: Annotated[list[str], Length(1)]
    mean: Annotated[list[float], Length(1)]
    std: Annotated[list[Annotated[float, POSITIVE]], Length(1)]


class Facts(_Required, total=False):
    """``secret.json``."""

    names: list[str]
    alphabet: str


@dataclass(frozen=True)
class Secret:
    """What the victim was trained on, and what it was not.

    Attributes:
        victim, heldout: the true images, and others.
        normalisation: as the network sees them.
        names: of the true images, where they have some.
        targets: what the loss compared with ``(n, …)``, where it was no class: real numbers,
            probabilities, several classes at once.
        alphabet: what an image's columns stand for, where it is a text of one-hot rows.
    """

    victim: ImageSet
    heldout: ImageSet
    normalisation: Normalisation
    names: tuple[str, ...] = ()
    targets: Tensor | None = None
    alphabet: str = ""

    @property
    def true_targets(self) -> Tensor | None:
        """What the loss compared with; None where nobody said."""
        if self.targets is not None:
            return self.targets
        return self.victim.labels if self.labelled else None

    @property
    def labelled(self) -> bool:
        """Whether the classes of the images are known."""
        return self.victim.classes != UNLABELLED

    def save(self, folder: Path) -> None:
        """Write ``images.safetensors`` and ``secret.json``."""
        write_atomically(folder / "images.safetensors", save(self._tensors()))
        facts = {
            "classes": self.victim.classes,
            "mean": self.normalisation.mean,
            "std": self.normalisation.std,
            "names": self.names,
            "alphabet": self.alphabet,
        }
        write_json(folder / "secret.json", facts)

    @classmethod
    def load(cls, folder: Path) -> Secret | None:
        """Read what ``save`` wrote; None where there is no secret, as in an audit.

        Raises:
            SimudyError: it is damaged.
        """
        if not (folder / "secret.json").exists():
            return None
        facts = read_json(folder / "secret.json", Facts, REMEDY)
        names = [f"{part}_{what}" for part in PARTS for what in ("images", "labels")]
        tensors, _ = read_tensors(folder / "images.safetensors", REMEDY, names=names)
        victim, heldout = (_image_set(tensors, part, facts, folder) for part in PARTS)
        names = tuple(facts.get("names", ()))
        if names and len(names) != len(victim):
            raise SimudyError(f"{folder} is damaged (names and images do not fit): {REMEDY}")
        normalisation = Normalisation(tuple(facts["mean"]), tuple(facts["std"]))
        alphabet = facts.get("alphabet", "")
        if alphabet and len(alphabet) != victim.images.shape[3]:
            raise SimudyError(f"{folder} is damaged (alphabet and images do not fit): {REMEDY}")
        if (targets := tensors.get(TARGETS)) is not None and len(targets) != len(victim):
            raise SimudyError(f"{folder} is damaged (targets and images do not fit): {REMEDY}")
        return cls(victim, heldout, normalisation, names, targets, alphabet)

    def normalised(self) -> tuple[Tensor, Tensor]:
        """The true and the held-out images as the network sees them."""
        return self.normalisation.normalise(self.victim.images), self.normalisation.normalise(
            self.heldout.images
        )

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"victim": self.victim, "heldout": self.heldout}
        images = {f"{name}_images": part.images.contiguous() for name, part in parts.items()}
        labels = {f"{name}_labels": part.labels.contiguous() for name, part in parts.items()}
        known = {} if self.targets is None else {TARGETS: self.targets.contiguous()}
        return images | labels | known


def classes_in(targets: Tensor, classes: int) -> Tensor | None:
    """The classes ``(n,)`` that targets ``(n, …)`` name outright, by number or by a 1 among zeros;
    None where they are real numbers, probabilities or several classes at once.
    """
    rows = targets.reshape(len(targets), -1).double()
    whole = bool((rows == rows.round()).all()) and bool((rows >= 0).all())
    if not whole or classes < 2:
        return None
    if rows.shape[1] == 1:
        return rows[:, 0].long() if bool((rows < classes).all()) else None
    one_hot = rows.shape[1] == classes and bool((rows.sum(1) == 1).all())
    return rows.argmax(1) if one_hot else None


def _image_set(tensors: dict[str, Tensor], part: str, facts: Facts, folder: Path) -> ImageSet:
    images, labels = tensors[f"{part}_images"], tensors[f"{part}_labels"]
    fits = (
        images.ndim == 4
        and images.dtype == torch.float32
        and labels.dtype == torch.int64
        and labels.shape == images.shape[:1]
        and {len(facts["mean"]), len(facts["std"])} <= {1, images.shape[1]}
        and bool(((images >= 0) & (images <= 1)).all())
        and bool(((labels >= 0) & (labels < len(facts["classes"]))).all())
    )
    if not fits or (part == "victim" and not len(images)):
        raise SimudyError(f"{folder} is damaged ({part} images and labels do not fit): {REMEDY}")
    return ImageSet(images, labels, tuple(facts["classes"]))
