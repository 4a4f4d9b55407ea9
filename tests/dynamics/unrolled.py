"""SGD unrolled by ``torch.autograd`` alone, with nothing of simudy's in it: what the tests of whole
runs compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Run(NamedTuple):
    """Where it ended, its momentum, and the loss and iterate of each step."""

    params: dict[str, Tensor]
    state: dict[str, Tensor]
    losses: list[Tensor]
    iterates: list[dict[str, Tensor]]


def network() -> nn.Module:
    """A small, smooth perceptron in float64."""
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batches(steps: int) -> tuple[list[Tensor], Tensor]:
    """Images of each step, to be differentiated by, and the labels of all."""
    images = [torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(steps)]
    return images, torch.arange(6) % 3


def plain_loss(module: nn.Module) -> Callable[..., Tensor]:
    """Cross-entropy of a module in torch."""
    return lambda params, batch: F.cross_entropy(
        torch.func.functional_call(module, params, (batch[0],)), batch[1]
    )


def sgd(
    loss: Callable[..., Tensor],
    params: dict[str, Tensor],
    data: Sequence[Any],
    *,
    lr: Any,
    momentum: Any,
    state: dict[str, Tensor] | None = None,
    cut: int | None = None,
    first_order: bool = False,
) -> Run:
    """SGD with momentum.

    Args:
        cut: the step before which everything is detached.
        first_order: take every gradient for a constant.
    """
    params = {k: p if p.requires_grad else p.clone().requires_grad_() for k, p in params.items()}
    run = Run(params, state or {}, [], [])
    for t, batch in enumerate(data):
        params, state = run.params, run.state
        if t == cut:
            params = {k: p.detach().requires_grad_() for k, p in params.items()}
            state = {k: b.detach() for k, b in state.items()}
        value = loss(params, batch)
        grads = torch.autograd.grad(value, list(params.values()), create_graph=True)
        grads = [g.detach() if first_order else g for g in grads]
        named = dict(zip(params, grads, strict=True))
        state = {k: momentum * state[k] + g if state else g for k, g in named.items()}
        params = {k: p - lr * state[k] for k, p in params.items()}
        run = Run(params, state, [*run.losses, value], [*run.iterates, params])
    return run


def view(tensors: dict[str, Tensor]) -> Tensor:
    """One number that every entry has a share in."""
    weights = {k: torch.arange(p.numel()).add(1.0).cos() for k, p in tensors.items()}
    parts = [(w.view_as(tensors[k]).to(tensors[k]) * tensors[k]).sum() for k, w in weights.items()]
    return torch.stack(parts).sum()
