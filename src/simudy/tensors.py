"""Files of tensors that we write ourselves, and read back: among them trained networks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from simudy.errors import SimudyError
from simudy.files import require_file, write_atomically

log = logging.getLogger(__name__)


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


def train_once(
    module: nn.Module, train: Callable[[], None], *, cache: Path, kind: str, again: str
) -> None:
    """Give ``module`` the weights in ``cache``, or ``train`` it in place and keep them there.

    Args:
        cache: a file whose name stands for everything the outcome depends on.
        kind, again: what these weights are and what making them anew is, in a message's words.
    """
    if not _recall(module, cache, kind=kind, again=again):
        train()
        write_atomically(cache, save(plain(module.state_dict())))


def _recall(module: nn.Module, cache: Path, *, kind: str, again: str) -> bool:
    if not cache.exists():
        return False
    try:
        module.load_state_dict(read_tensors(cache, again)[0])
    except (SimudyError, RuntimeError):
        log.warning("%s is damaged: %s", cache, again)
        return False
    log.info("%s from %s", kind, cache)
    return True
