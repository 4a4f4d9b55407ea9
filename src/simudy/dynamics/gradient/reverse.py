"""Reverse over reverse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from simudy.dynamics.gradient.base import Gradient, Loss, size
from simudy.dynamics.tree import Params


@dataclass(frozen=True)
class Reverse(Gradient):
    """Reverse over reverse, as the paper: the graph of the gradient is itself kept.

    Memory per step: the activations of the forward and the backward pass.
    """

    def of(self, loss: Loss, *, has_aux: bool = False) -> Callable[[Params, Any], Any]:
        return partial(reverse, loss, has_aux)

    def kept(self, params: Params, activations: int) -> int:
        return 2 * size(params) + activations

    def leaner(self) -> Gradient | None:
        from simudy.dynamics.gradient.mixed import Mixed  # which builds on this file

        return Mixed()


def reverse(loss: Loss, has_aux: bool, params: Params, batch: Any) -> Any:
    touched: set[str] = set()

    # The batch comes in by closure: torch.func would wrap, and so unmake, the factored weights it
    # may hold.
    def watched(leaves: Params) -> Any:
        for name, leaf in leaves.items():
            leaf.register_hook(partial(_note, touched, name))
        return loss(leaves, batch)

    result = torch.func.grad(watched, has_aux=has_aux)(params)
    grads, aux = result if has_aux else (result, None)
    # torch.func fills in zeros where torch.autograd leaves None
    grads = {name: grad for name, grad in grads.items() if name in touched}
    return (grads, aux) if has_aux else grads


def _note(touched: set[str], name: str, grad: Tensor | None) -> None:
    """A gradient arrived, be it zero: autograd calls the hook of what it does not reach with None,
    or not at all.
    """
    if grad is not None:
        touched.add(name)
