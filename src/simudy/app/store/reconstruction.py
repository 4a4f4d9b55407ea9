"""``reconstruction.safetensors``: what an attack found, with the facts of its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from simudy.app.store.run_directory import without_infinities
from simudy.attack.search import Reconstruction
from simudy.errors import SimudyError
from simudy.files import write_atomically


def write(path: Path, found: Reconstruction, facts: dict[str, Any]) -> None:
    """Images, labels and what was learned, as tensors by name; ``facts`` as json beside them."""
    learned = {f"learned.{name}": torch.tensor(value) for name, value in found.learned.items()}
    tensors = {"images": found.images, "labels": found.labels, **learned}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, metadata={"facts": json.dumps(without_infinities(facts))}))


def read(path: Path, *, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the facts that ``write`` was given.

    Raises:
        SimudyError: the file is missing or damaged.
    """
    if not path.exists():
        raise SimudyError(f"no {path.name} in {path.parent}: run task=reconstruct there first")
    try:
        with safe_open(path, "pt", device=device) as file:
            names = {"images", "labels", *file.keys()}
            return {name: file.get_tensor(name) for name in names}, json.loads(
                file.metadata()["facts"]
            )
    except (SafetensorError, KeyError, TypeError) as error:
        raise SimudyError(f"{path} is damaged: remove it and run task=reconstruct again") from error
