"""What an owner may do to the final weights before anyone sees them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from simudy.dynamics import tree
from simudy.dynamics.optim.noised import public
from simudy.dynamics.optim.rule import end_on
from simudy.dynamics.recipe import Recipe
from simudy.dynamics.tree import Params
from simudy.ranges import FRACTION, NOT_NEGATIVE

_LEVELS = 127  # of int8, to each side of zero


@dataclass(frozen=True)
class Published:
    """Weights as the world sees them.

    Attributes:
        weights: by name.
        precision: the floating type they were rounded to, if they were.
        hidden: standard deviation, by name, of what else separates them from the true ones.
    """

    weights: Params
    precision: str | None
    hidden: dict[str, float]


@dataclass(frozen=True)
class Publication:
    """How: pruned first, then noised, then rounded. All of it is told to the attacker.

    Args:
        rounding: to a floating type, or to 255 even levels in each tensor (``int8``).
        noise: standard deviation of normal noise, in root mean squares of the displacement.
        prune: share of the weights, the smallest by size over all tensors, that is set to zero.
        seed: draws the noise.
    """

    rounding: Literal["bfloat16", "float16", "int8"] | None = None
    noise: Annotated[float, NOT_NEGATIVE] = 0.0
    prune: Annotated[float, FRACTION] = 0.0
    seed: int = 0

    def __call__(self, initial: Params, final: Params) -> Published:
        """``final`` as it is published, after a run from ``initial``."""
        weights = _pruned(final, self.prune) if self.prune else dict(final)
        std = self.noise * _root_mean_square(tree.sub(final, initial))
        hidden = dict.fromkeys(weights, std) if std else {}
        if std:
            rng = torch.Generator().manual_seed(self.seed)
            weights = {
                k: w + std * torch.randn(w.shape, generator=rng).to(w) for k, w in weights.items()
            }
        if self.rounding == "int8":
            steps = {k: float(w.abs().max()) / _LEVELS for k, w in weights.items()}
            weights = {k: _on_grid(w, steps[k]) for k, w in weights.items()}
            hidden = {k: (s**2 / 12 + std**2) ** 0.5 for k, s in steps.items()}
        elif self.rounding is not None:
            kind = getattr(torch, self.rounding)
            weights = {k: w.to(kind).to(w.dtype) for k, w in weights.items()}
        told = None if self.rounding in (None, "int8") else self.rounding
        return Published(weights, told, hidden)


def without_noise(recipe: Recipe) -> Recipe:
    """The run as others may know it: the seed of its noise would give the noise away."""
    return dataclasses.replace(recipe, optimizer=public(recipe.optimizer))


def noise_of_run(recipe: Recipe, initial: Params, count: int) -> dict[str, float]:
    """Standard deviation, by name, of what the run's own noise (``Noised``) leaves in the weights,
    to first order: a run on ``count`` images whose gradients are zero, with it and without. Weights
    that it leaves alone are not named.
    """
    if public(recipe.optimizer) is recipe.optimizer:
        return {}
    zero = {k: torch.zeros_like(w) for k, w in initial.items()}
    both_ways = (recipe, without_noise(recipe))
    ends = [end_on(one.rules(count), initial, lambda _: zero) for one in both_ways]
    left = {k: float(w.square().mean().sqrt()) for k, w in tree.sub(*ends).items()}
    return {k: std for k, std in left.items() if std}


def both(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Standard deviations, by name, of two independent noises together."""
    names = {**one, **other}
    return {k: math.hypot(one.get(k, 0.0), other.get(k, 0.0)) for k in names}


def _pruned(weights: Params, share: float) -> Params:
    sizes = torch.cat([w.abs().flatten() for w in weights.values()])
    count = round(share * len(sizes))
    if not count:
        return dict(weights)
    edge = sizes.kthvalue(count).values
    return {k: torch.where(w.abs() <= edge, 0.0, w) for k, w in weights.items()}


def _on_grid(weight: Tensor, step: float) -> Tensor:
    return (weight / step).round() * step if step else weight


def _root_mean_square(weights: Params) -> float:
    count = sum(w.numel() for w in weights.values())
    return float(tree.norm(weights)) / count**0.5
