"""Differential privacy: each sample's gradient clipped, noise on their mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simudy.dynamics.optim.accumulated import Accumulated
from simudy.dynamics.optim.clipped import Clipped
from simudy.dynamics.optim.rule import Rate, Rule, is_on
from simudy.dynamics.optim.wrapper import Numbered
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


@dataclass
class Noised(Numbered):
    """Add normal noise to the gradient: g ← g + std·ξ_t, ξ_t drawn from ``seed`` and t.

    Args:
        rule: the rule that uses the noised gradient.
        std: standard deviation of the noise on every entry.
        seed: the same seed, the same noise: a run can be repeated, and differentiated. Whoever
            knows it can take the noise off again, so evidence does not hold it (see ``public``).

    Example:
        >>> from simudy.dynamics.optim import SGD
        >>> rule, params = Noised(SGD(lr=1.0), std=0.0), {"w": torch.zeros(1)}
        >>> rule.update({"w": torch.ones(1)}, rule.init(params), params)[0]["w"]
        tensor([-1.])
    """

    rule: Rule
    std: Rate = 0.0
    seed: int = 0

    @property
    def spans_gradients(self) -> bool:  # type: ignore[override]
        return self.rule.spans_gradients and not is_on(self.std)

    def shaped_at(self, step: int, grads: Params, params: Params) -> Params:
        if not is_on(self.std):
            return grads
        rng = np.random.default_rng([self.seed, step])
        return {k: g + self.std * _drawn(params[k], rng) for k, g in grads.items()}


def private(
    rule: Rule, *, max_norm: float = 1.0, noise: float = 1.0, samples: int, seed: int = 0
) -> Rule:
    """DP-SGD around ``rule``: g = (Σ_i g_i · min(1, C/‖g_i‖) + noise·C·ξ) / samples.

    Every batch must be a single sample (``recipe.batch_size=1``), for a rule sees one gradient a
    batch; ``rule`` takes a step every ``samples`` of them. Abadi et al., Deep Learning with
    Differential Privacy, CCS 2016; the step is Opacus's.

    Args:
        rule: what uses the private gradient.
        max_norm: C.
        noise: the noise multiplier.
        samples: in a lot, of a size that is not secret.
        seed: of the noise.

    Raises:
        SimudyError: ``noise`` is negative.
    """
    if noise < 0:
        raise SimudyError(f"private(noise={noise}): give 0 or more")
    noised = Noised(rule, std=noise * max_norm / samples, seed=seed)
    return Clipped(Accumulated(noised, every=samples), max_norm=max_norm)


def public(rule: Rule) -> Rule:
    """``rule`` as others may know it: without the noise, which its seed would give away. The very
    same where it has none.
    """
    if isinstance(rule, Noised):
        return public(rule.rule)
    held = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)}  # type: ignore[arg-type]
    told = {name: _public_within(value) for name, value in held.items()}
    changed = {name: value for name, value in told.items() if value is not held[name]}
    return dataclasses.replace(rule, **changed) if changed else rule  # type: ignore[type-var]


def _public_within(value: Any) -> Any:
    """Of one field: a rule, or rules by name."""
    if isinstance(value, Rule):
        return public(value)
    if not isinstance(value, Mapping):
        return value
    told = {name: _public_within(inner) for name, inner in value.items()}
    return told if any(told[name] is not value[name] for name in value) else value


def _drawn(like: Tensor, rng: np.random.Generator) -> Tensor:
    # Not torch's: vmap refuses its draws, even those of a generator with a seed.
    return torch.from_numpy(rng.standard_normal(tuple(like.shape))).to(like)
