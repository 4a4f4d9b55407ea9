"""Sharpness-aware minimisation."""

from __future__ import annotations

from dataclasses import dataclass

from simudy.dynamics import tree
from simudy.dynamics.optim.rule import Rate
from simudy.dynamics.optim.wrapper import Wrapper
from simudy.dynamics.tree import Params


@dataclass
class SAM(Wrapper):
    """Take the gradient where the loss is about largest nearby, then a step with ``rule``.

    g ← ∇ℓ(θ + ρ·∇ℓ(θ)/(‖∇ℓ(θ)‖ + 1e-12)) on the batch of the step. Two gradients a step; the
    simulation asks for the second one (``Rule.second_point``), and differentiates through both.

    Args:
        rule: the rule that uses the gradient found there.
        rho: ρ, the radius.

    Reference: Foret et al., Sharpness-aware minimization for efficiently improving generalization,
    arXiv:2010.01412.

    Example:
        >>> import torch
        >>> from simudy import SGD, simulate
        >>> loss = lambda params, batch: params["w"].square().sum()
        >>> rule = SAM(SGD(lr=0.25), rho=0.5)
        >>> simulate(loss, {"w": torch.ones(1)}, [None], rule)["w"]  # 1 − 0.25 · 2 · 1.5
        tensor([0.2500])
    """

    rho: Rate = 0.05

    def second_point(self, grads: Params, params: Params) -> Params | None:
        way = tree.scale(self.rho / (tree.norm(grads) + 1e-12), grads)
        return {**params, **tree.add({name: params[name] for name in grads}, way)}
