"""The victim's training run, on its own images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simudy.dynamics.model import StatelessModel
from simudy.dynamics.model.criterion import PerSample
from simudy.dynamics.recipe import Recipe
from simudy.dynamics.simulate import simulate
from simudy.dynamics.tree import Params


@torch.no_grad()
def train(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    loss: nn.Module | None = None,
) -> tuple[StatelessModel, Params]:
    """Train by the very fold that the attack simulates; nothing of a graph is kept.

    Args:
        module: the architecture, at θ0 and in the mode it is to be trained in; not changed.
        images: normalised ``(n, c, h, w)``.
        labels: ``(n,)``.
        loss: of ``torch.nn``. Default: cross-entropy.

    Returns:
        The model with θ0 and its buffers, and θf.
    """
    criterion = PerSample(loss).to(images.device) if loss is not None else None
    model = StatelessModel(module, criterion=criterion)
    final = simulate(
        model.loss, model.params, recipe.collate(images, labels), recipe.rules(len(images))
    )
    return model, final
