"""A person's files of weights: the two ends of a run and what she kept from inside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import nn

from simudy.attack.checkpoints.segments import updated
from simudy.attack.checkpoints.weights import load_weights
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError
from simudy.files import user_path


def load_inside(module: nn.Module, said: DictConfig, recipe: Recipe) -> dict[str, Any]:
    """What the files of ``evidence`` hold, as ``evidence_from_weights`` takes it.

    Raises:
        SimudyError: their numbers do not fit each other or the recipe, or one cannot be read.
    """
    initial, final = (load_weights(user_path(path)) for path in (said.initial, said.final))
    held, again = (
        [load_weights(user_path(p)) for p in said[k]] for k in ("checkpoints", "resumed")
    )
    if again and len(again) != len(held):
        raise SimudyError(
            f"{len(again)} files resumed for {len(held)} checkpoints: give evidence.resumed one "
            "file a checkpoint"
        )
    if said.updates:
        starts = [initial, *(again or [None] * len(held))]
        *held, final = _applied(module, [*held, final], starts)
    steps = _steps(said, recipe)
    return {
        "initial": initial,
        "final": final,
        "checkpoints": dict(zip(steps, held, strict=True)),
        "resumed": dict(zip(steps, again, strict=False)),
    }


def _applied(module: nn.Module, updates: Sequence[Any], starts: Sequence[Any]) -> list[Any]:
    """The weights that updates lead to, each from its start, or from where the one before led."""
    found: list[Any] = []
    for update, start in zip(updates, starts, strict=True):
        found.append(updated(module, found[-1] if start is None else start, update))
    return found


def _steps(said: DictConfig, recipe: Recipe) -> list[int]:
    """After how many batches each checkpoint was saved."""
    count = len(said.checkpoints)
    if said.checkpoint_steps is not None:
        if len(said.checkpoint_steps) != count:
            raise SimudyError(
                f"{len(said.checkpoint_steps)} evidence.checkpoint_steps for {count} files of "
                "evidence.checkpoints: give one a file"
            )
        return list(said.checkpoint_steps)
    if not count:
        return []
    if count != recipe.epochs - 1:
        raise SimudyError(
            f"{count} evidence.checkpoints in a run of {recipe.epochs} epochs: give one after each "
            "epoch but the last, or set evidence.checkpoint_steps"
        )
    if said.n is None and recipe.batch_size is not None:
        raise SimudyError(
            "evidence.checkpoints after each epoch need evidence.n to count batches: set it, or "
            "evidence.checkpoint_steps"
        )
    each = recipe.steps(said.n or 1) // recipe.epochs
    return [each * (epoch + 1) for epoch in range(count)]
