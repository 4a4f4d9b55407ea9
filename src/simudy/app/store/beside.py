"""What other tasks leave in a run's directory, for its result and its report."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, TypedDict

from torch import Tensor

from simudy.files import read_json, write_json
from simudy.ranges import FRACTION, Range

COSINE = Annotated[float, Range(-1.001, 1.001)]


class AgreementFacts(TypedDict):
    """``agreement.json``: how far independent searches confirm each image."""

    images: str  # the images that it is about, as a hash
    searches: list[str]
    false_rate: Annotated[float, FRACTION]
    threshold: COSINE
    unrelated: int
    cosines: list[COSINE]
    p_values: list[Annotated[float, FRACTION]]
    ssim: list[COSINE]  # the lowest with a partner in another search
    consistent: list[bool]


def save_agreement(path: Path, images: Tensor, facts: dict[str, Any]) -> None:
    """Beside the images it is about."""
    write_json(path, {"images": digest_of(images), **facts})


def load_agreement(path: Path, images: Tensor) -> dict[str, Any] | None:
    """What is known of these very images; None where nothing is, or only of earlier ones.

    Raises:
        SimudyError: the file is damaged.
    """
    if not path.exists():
        return None
    found = read_json(path, AgreementFacts, "remove it, or run task=verdict again")
    return found if found["images"] == digest_of(images) else None


def load_found(path: Path) -> dict[str, Any] | None:
    """What another task found of the same weights; None where it was not asked.

    Raises:
        SimudyError: the file is damaged.
    """
    remedy = f"remove it, or run task={path.stem} again"
    return read_json(path, dict[str, Any], remedy) if path.exists() else None


def digest_of(tensor: Tensor) -> str:
    """Sixteen hexadecimal digits that tell tensors apart."""
    content = tensor.detach().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:16]
