"""ReLUs rounded off, so that a derivative says something of a neighbourhood."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RELUS = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)


class Smoothed(TorchFunctionMode):
    """While it is on, every ReLU is E[relu(z + σε)] = z·Φ(z/σ) + σ·φ(z/σ), ε standard normal.

    Args:
        sigma: σ; 0 leaves ReLUs as they are.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.sigma and func in _RELUS:
            return _smoothed(args[0], self.sigma)
        return func(*args, **(kwargs or {}))


def _smoothed(z: Tensor, sigma: float) -> Tensor:
    at = z / sigma
    below = 0.5 * (1 + torch.erf(at / math.sqrt(2)))
    return z * below + sigma * torch.exp(-0.5 * at.square()) / math.sqrt(2 * math.pi)
