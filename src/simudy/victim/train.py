"""The victim's training run, on its own images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simudy import stopping
from simudy.dynamics.adjoint import Direct, Step
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
    keep: Sequence[int] = (),
) -> tuple[StatelessModel, Params, list[Params]]:
    """Train by the very fold that the attack simulates; nothing of a graph is kept.

    Args:
        module: the architecture, at θ0 and in the mode it is to be trained in; not changed.
        images: normalised ``(n, c, h, w)``.
        labels: ``(n,)``.
        loss: of ``torch.nn``. Default: cross-entropy.
        keep: steps after which the weights are kept as well.

    Raises:
        KeyboardInterrupt: somebody asked to stop.

    Returns:
        The model with θ0 and its buffers, θf, and the weights after each of ``keep``.
    """
    criterion = PerSample(loss).to(images.device) if loss is not None else None
    model = StatelessModel(module, criterion=criterion)
    batches, rules = recipe.collate(images, labels), recipe.rules(len(images))
    run = partial(simulate, model.loss, model.params, batches, rules, adjoint=_Stoppable())
    if not keep:  # to observe costs a forward pass a step
        return model, run(), []
    final, seen = run(observe=lambda step, params, loss: params if step + 1 in keep else None)
    return model, final, [params for params in seen if params is not None]


class _Stoppable(Direct):
    """Looks, before each step, whether somebody asked to stop."""

    def fold(self, step: Step, carry: Any, xs: Sequence[Any]) -> tuple[Any, list[Any]]:
        def next_one(carry: Any, x: Any) -> tuple[Any, Any]:
            stopping.check()
            return step(carry, x)

        return super().fold(next_one, carry, xs)
