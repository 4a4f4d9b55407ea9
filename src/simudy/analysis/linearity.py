"""How linear the training dynamics are: whether a sample's gradient keeps its direction from epoch
to epoch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from simudy import stopping
from simudy.dynamics import tree
from simudy.dynamics.gradient import Gradient, Loss, Reverse
from simudy.dynamics.gradient.factored import Factored
from simudy.dynamics.model import StatelessModel
from simudy.dynamics.optim import SGD
from simudy.dynamics.optim.rule import advance
from simudy.dynamics.recipe import Recipe
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


@dataclass(frozen=True)
class Linearity:
    """M_lin, in [−1/(T−1), 1]: 1 where every sample's gradient keeps its direction, as in a wide
    network.

    Attributes:
        m_lin: mean over the samples.
        per_sample: ``(n,)``.
    """

    m_lin: float
    per_sample: Tensor


@torch.no_grad()
def linearity(
    loss: Loss,
    params: Params,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    gradient: Gradient = Factored(layers="all"),  # noqa: B008 (frozen)
) -> Linearity:
    """Train on ``(images, labels)`` and compare each sample's gradients at the start of every
    epoch, θ0 first.

    M_lin = mean_i 2/(T(T−1)) Σ_{t1<t2} cos(∇ℓ_i(θ_t1), ∇ℓ_i(θ_t2)) (Tian et al., ICLR 2025), summed
    in O(T) as ‖Σ_t ĝ_t‖² − T with ĝ of unit length. A gradient that is exactly zero has no
    direction: its cosines count as 0. Memory: one θ per sample, but T·(in + out) for a linear
    layer, whose gradient on one sample is of rank one and is kept so (``Factored``). Time: T·n
    backward passes of one sample.

    Args:
        loss: ``(params, (images, labels)) -> mean of per-sample losses``. It must not mix samples:
            no batch statistics.
        params: θ0.
        images: normalised ``(n, c, h, w)``.
        labels: ``(n,)``.
        gradient: how a sample's gradient is represented; all agree.

    Raises:
        SimudyError: the recipe has fewer than two epochs.
    """
    if recipe.epochs < 2:
        raise SimudyError(
            f"Recipe(epochs={recipe.epochs}): linearity compares epochs, so give 2 or more"
        )
    sums = [_Directions() for _ in images]
    for theta in _epoch_starts(loss, params, images, labels, recipe):
        lifted, grads = gradient.bind(loss, theta, [(images[:1], labels[:1])], [SGD()])
        for i, directions in enumerate(sums):
            directions.add(grads(lifted, (images[i : i + 1], labels[i : i + 1])))
    per_sample = torch.stack([directions.mean_cosine(recipe.epochs) for directions in sums])
    return Linearity(per_sample.mean().item(), per_sample)


def run_linearity(
    module: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe
) -> dict[str, Any]:
    """``task=linearity``: M_lin of ``module``, trained by ``recipe`` from the weights it has, as
    plain data.

    Returns:
        ``m_lin``, ``m_lin_per_sample`` (a list), ``n``, ``epochs``, ``parameters`` (their number),
        ``seconds``.

    Raises:
        SimudyError: fewer than two epochs, or a BatchNorm in train mode, under which no sample has
            its own gradient.
    """
    if any(isinstance(layer, _NormBase) and layer.training for layer in module.modules()):
        raise SimudyError(
            "BatchNorm in train mode mixes the samples of a batch: call module.eval()"
        )
    model, start = StatelessModel(module), time.perf_counter()
    found = linearity(model.loss, model.params, images, labels, recipe)
    return {
        "m_lin": found.m_lin,
        "m_lin_per_sample": found.per_sample.tolist(),
        "n": len(images),
        "epochs": recipe.epochs,
        "parameters": sum(p.numel() for p in model.params.values()),
        "seconds": time.perf_counter() - start,
    }


@dataclass
class _Directions:
    """Σ_t ĝ_t of one sample, and how many of the ĝ_t are not zero."""

    total: Params = field(default_factory=dict)
    count: Tensor | int = 0

    def add(self, grads: Params) -> None:
        length = tree.norm(grads)
        unit = tree.scale(torch.where(length > 0, 1 / length, 0.0), grads)
        self.total = tree.add(self.total, unit) if self.total else unit
        self.count = self.count + (length > 0).to(length)

    def mean_cosine(self, epochs: int) -> Tensor:
        return (tree.norm(self.total).square() - self.count) / (epochs * (epochs - 1))


def _epoch_starts(
    loss: Loss, params: Params, images: Tensor, labels: Tensor, recipe: Recipe
) -> Iterator[Params]:
    """θ at the start of each epoch; the run goes on between, one step at a time."""
    rules, grads = recipe.rules(len(images)), Reverse().of(loss)
    state, per_epoch = rules[0].init(params), len(rules) // recipe.epochs
    for step, (batch, rule) in enumerate(zip(recipe.collate(images, labels), rules, strict=True)):
        stopping.check()
        if step % per_epoch == 0:
            yield params
        params, state = advance(rule, grads, batch, state, params)
