"""Files of tensors that we write ourselves, and read back."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from simudy.errors import SimudyError
from simudy.files import require_file


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors writes them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def read_tensors(
    path: Path, remedy: str, *, names: Collection[str] = (), device: str = "cpu"
) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a ``.safetensors`` file, and the json under ``facts`` in its head, if any.

    Args:
        remedy: what to do where it is missing or damaged.
        names: tensors that must be there.

    Raises:
        SimudyError: it is missing, damaged, or lacks one of them.
    """
    require_file(path, remedy)
    try:
        with safe_open(path, "pt", device=device) as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads((file.metadata() or {}).get("facts", "null"))
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise SimudyError(f"{path} is damaged: {remedy}") from error
    if lacking := sorted(set(names) - found.keys()):
        raise SimudyError(f"{path} is damaged (no {lacking[0]}): {remedy}")
    return found, facts
