"""Gradient clipping, as a rule around a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simudy.dynamics import tree
from simudy.dynamics.optim.rule import Rule, Scalar
from simudy.dynamics.tree import Params

_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6


@dataclass
class Clipped(Rule):
    """Rescale the whole gradient when its global norm exceeds a bound, then apply ``rule``.

    g ← g · min(1, max_norm / (‖g‖ + 1e-6)), as ``torch.nn.utils.clip_grad_norm_``; with ``rescale_to`` a gradient above
    ``max_norm`` is brought to ``rescale_to`` instead (SimuDy's released code: above 20, to 5). The norm is part of the
    graph: its derivative is exact.

    Args:
        rule: the rule that uses the clipped gradient.
        max_norm: bound on the norm over all parameters.
        rescale_to: norm given to a gradient above the bound. Default: ``max_norm``.
    """

    rule: Rule
    max_norm: Scalar = 1.0
    rescale_to: Scalar | None = None

    @property
    def spans_gradients(self) -> bool:  # type: ignore[override]
        return self.rule.spans_gradients

    def init(self, params: Params) -> Any:
        return self.rule.init(params)

    def update(self, grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        return self.rule.update(tree.scale(self._factor(grads), grads), state, params)

    def final(self, params: Params, state: Any) -> Params:
        return self.rule.final(params, state)

    def _factor(self, grads: Params) -> Tensor:
        norm = tree.norm(grads) + _EPS
        target = self.max_norm if self.rescale_to is None else self.rescale_to
        return torch.where(norm > self.max_norm, target / norm, 1.0)
