"""``reconstruction.safetensors``: what an attack found, with the facts of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from torch import Tensor

from simudy.errors import SimudyError
from simudy.plain import misfit
from simudy.ranges import COUNT
from simudy.tensors import read_tensors

REMEDY = "run task=reconstruct there, after removing it if it is damaged"


class Facts(TypedDict):
    """What stands in the file's head, as far as it is relied upon."""

    status: str
    n: Annotated[int, COUNT]


def read(path: Path, *, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the facts that ``write`` was given.

    Raises:
        SimudyError: the file is missing or damaged.
    """
    tensors, facts = read_tensors(path, REMEDY, names=("images", "labels"), device=device)
    wrong = misfit(facts, Facts, "its facts") or _misshapen(**tensors)
    if wrong:
        raise SimudyError(f"{path} is damaged ({wrong}): {REMEDY}")
    return tensors, facts


def _misshapen(images: Tensor, labels: Tensor, **learned: Tensor) -> str | None:
    if images.ndim != 4 or not images.is_floating_point() or not images.numel():
        return f"its images are {images.dtype} {tuple(images.shape)}"
    if not bool(torch.isfinite(images).all()):
        return "its images hold NaN or infinity"
    one_each = labels.ndim == (2 if labels.is_floating_point() else 1)
    whole = labels.dtype == torch.int64 or labels.is_floating_point()
    if len(labels) != len(images) or not one_each or not whole:
        return f"its labels are {labels.dtype} {tuple(labels.shape)}"
    odd = [name for name, value in learned.items() if value.numel() != 1 or not value.item() > 0]
    return f"its {odd[0]} is no positive number" if odd else None
