"""Gradient clipping, as a rule around a rule: by global norm, by value, and relative to the
weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simudy.dynamics import tree
from simudy.dynamics.optim.moments import root
from simudy.dynamics.optim.rule import Bound, Rate
from simudy.dynamics.optim.wrapper import Wrapper
from simudy.dynamics.tree import Params

_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6


@dataclass
class Clipped(Wrapper):
    """Rescale the whole gradient when its global norm exceeds a bound, then apply ``rule``.

    g ← g · min(1, max_norm / (‖g‖ + 1e-6)), as ``torch.nn.utils.clip_grad_norm_``; with
    ``rescale_to`` a gradient above ``max_norm`` is brought to ``rescale_to`` instead (SimuDy's
    released code: above 20, to 5). The norm is part of the graph: its derivative is exact.

    Args:
        rule: the rule that uses the clipped gradient.
        max_norm: bound on the norm over all parameters.
        rescale_to: norm given to a gradient above the bound. Default: ``max_norm``.

    Reference: Pascanu, Mikolov & Bengio, On the difficulty of training recurrent neural networks,
    arXiv:1211.5063.

    Example:
        >>> from simudy.dynamics.optim import SGD
        >>> rule, params = Clipped(SGD(lr=1.0), max_norm=5.0), {"w": torch.zeros(2)}
        >>> rule.update({"w": torch.tensor([6.0, 8.0])}, rule.init(params), params)[0]["w"]
        tensor([-3.0000, -4.0000])
    """

    max_norm: Bound = 1.0
    rescale_to: Bound | None = None

    def shaped(self, grads: Params, params: Params) -> Params:
        if not grads:  # a group that this step leaves alone
            return grads
        norm = tree.norm(grads) + _EPS
        target = self.max_norm if self.rescale_to is None else self.rescale_to
        return tree.scale(torch.where(norm > self.max_norm, target / norm, 1.0), grads)


@dataclass
class ClippedByValue(Wrapper):
    """Clamp every entry of the gradient to [−max_value, max_value], as
    ``torch.nn.utils.clip_grad_value_``.

    Args:
        rule: the rule that uses the clipped gradient.
        max_value: bound on each entry.

    Example:
        >>> from simudy.dynamics.optim import SGD
        >>> rule, params = ClippedByValue(SGD(lr=1.0), max_value=5.0), {"w": torch.zeros(2)}
        >>> rule.update({"w": torch.tensor([3.0, 8.0])}, rule.init(params), params)[0]["w"]
        tensor([-3., -5.])
    """

    max_value: Bound = 1.0

    spans_gradients = False  # type: ignore[assignment]  # entry by entry: no multiple of the gradient

    def shaped(self, grads: Params, params: Params) -> Params:
        return tree.map(lambda g: g.clamp(-self.max_value, self.max_value), grads)


@dataclass
class ClippedAdaptively(Wrapper):
    """Adaptive gradient clipping (AGC): bound each unit's gradient by the size of its weights.

    gᵢ ← gᵢ · min(1, ratio · max(‖θᵢ‖, floor) / ‖gᵢ‖) for each output unit i (a row of a matrix, a
    filter); a bias or scalar is one unit.

    Args:
        rule: the rule that uses the clipped gradient.
        ratio: bound on ‖gᵢ‖ / ‖θᵢ‖.
        floor: least ‖θᵢ‖ assumed, so that zero weights can move.

    Reference: Brock et al., High-performance large-scale image recognition without normalization,
    arXiv:2102.06171.

    Example:
        >>> from simudy.dynamics.optim import SGD
        >>> params, grads = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([30.0, 40.0])}
        >>> rule = ClippedAdaptively(SGD(lr=1.0), ratio=0.1)
        >>> rule.update(grads, rule.init(params), params)[0]["w"]
        tensor([2.7000, 3.6000])
    """

    ratio: Bound = 0.01
    floor: Rate = 1e-3

    spans_gradients = False  # type: ignore[assignment]  # unit by unit: no multiple of the gradient

    def shaped(self, grads: Params, params: Params) -> Params:
        return tree.map(self._clip, grads, params)

    def _clip(self, grad: Tensor, param: Tensor) -> Tensor:
        bound, size = self.ratio * _unit_norm(param).clamp(min=self.floor), _unit_norm(grad)
        above = size > bound
        return torch.where(above, bound / torch.where(above, size, 1.0), 1.0) * grad


def _unit_norm(leaf: Tensor) -> Tensor:
    """‖·‖ of each output unit, shaped to broadcast over ``leaf``."""
    square = leaf.square()
    return root(
        square.sum() if leaf.ndim < 2 else square.sum(dim=tuple(range(1, leaf.ndim)), keepdim=True)
    )
