"""Networks that are trained once, and kept for the next run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save
from torch import nn

from simudy.errors import SimudyError
from simudy.files import write_atomically
from simudy.tensors import plain, read_tensors

log = logging.getLogger(__name__)


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
