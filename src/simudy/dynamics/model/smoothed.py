"""ReLUs rounded off, so that a derivative says something of a neighbourhood."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from simudy.dynamics.tree import Params

_IN_PLACE = (torch.relu_, Tensor.relu_)
_RELUS = (F.relu, torch.relu, Tensor.relu, *_IN_PLACE)


class Smoothed(TorchFunctionMode):
    """While it is on, every ReLU is E[relu(z + σε)] = z·Φ(z/σ) + σ·φ(z/σ), ε standard normal.

    Other kinks (max pooling, leaky ReLU) stay.

    Args:
        sigma: σ, in the units of what the ReLU is given; 0 leaves ReLUs as they are.
        frozen: take the gate Φ for a constant, as a ReLU's is: second derivatives are then inexact,
            by leaving out how the gate moves.
    """

    def __init__(self, sigma: float, *, frozen: bool = False) -> None:
        super().__init__()
        self.sigma, self.frozen = sigma, frozen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.sigma or func not in _RELUS:
            return func(*args, **kwargs)
        z, *rest = (*args, *(kwargs[k] for k in ("input", "inplace") if k in kwargs))
        in_place = func in _IN_PLACE or (func is F.relu and any(rest))
        made = smoothed(z.clone() if in_place else z, self.sigma, frozen=self.frozen)
        return z.copy_(made) if in_place else made


@dataclass(frozen=True)
class SmoothedLoss:
    """``loss(params, batch)`` with every ReLU smoothed, whenever and wherever it is replayed."""

    loss: Callable[[Params, Any], Tensor]
    sigma: float
    frozen: bool = False

    def __call__(self, params: Params, batch: Any) -> Tensor:
        with Smoothed(self.sigma, frozen=self.frozen):
            return self.loss(params, batch)


def smoothed(z: Tensor, sigma: float, *, frozen: bool = False) -> Tensor:
    """E[relu(z + σε)], whose slope is Φ(z/σ), ``frozen`` or not."""
    at = z / sigma
    gate = 0.5 * (1 + torch.erf(at / math.sqrt(2)))
    beyond = sigma * torch.exp(-0.5 * at.square()) / math.sqrt(2 * math.pi)
    return z * gate.detach() + beyond.detach() if frozen else z * gate + beyond
