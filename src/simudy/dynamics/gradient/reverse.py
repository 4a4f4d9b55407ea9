"""Reverse over reverse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from simudy.dynamics.gradient.base import Gradient, Loss
from simudy.dynamics.tree import Params


@dataclass(frozen=True)
class Reverse(Gradient):
    """Reverse over reverse, as the paper: the graph of the gradient is itself kept.

    Memory per step: the activations of the forward and the backward pass.
    """

    def of(self, loss: Loss, *, has_aux: bool = False) -> Callable[[Params, Any], Any]:
        return partial(reverse, loss, has_aux)


def reverse(loss: Loss, has_aux: bool, params: Params, batch: Any) -> Any:
    # The batch comes in by closure: torch.func would wrap, and so unmake, the factored weights it
    # may hold.
    return torch.func.grad(lambda p: loss(p, batch), has_aux=has_aux)(params)
