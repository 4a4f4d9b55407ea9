"""Forward over reverse: no graph of a graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from simudy.dynamics import tree
from simudy.dynamics.ambient import one_thread
from simudy.dynamics.custom_vjp import custom_vjp, is_plain_wanted
from simudy.dynamics.gradient.base import Gradient, Loss, size
from simudy.dynamics.gradient.reverse import reverse
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


@dataclass(frozen=True)
class Mixed(Gradient):
    """Forward over reverse: a step keeps θ and the batch, nothing of its graph.

    For a cotangent v on g = ∇ℓ(θ, z), one jvp of the full gradient (∂θ, ∂z) in direction θ: v
    yields Hv and the mixed terms, second derivatives being symmetric. Memory per step: θ. Time: 1.3
    to 1.7 times that of ``Reverse``.

    Reference: Kemaev et al., Scalable Meta-Learning via Mixed-Mode Differentiation, ICML 2025.
    """

    def of(self, loss: Loss, *, has_aux: bool = False) -> Callable[[Params, Any], Any]:
        return partial(_mixed, loss if has_aux else partial(without_aux, loss), has_aux)

    def kept(self, params: Params, activations: int) -> int:
        return size(params)


def without_aux(loss: Loss, params: Params, batch: Any) -> tuple[Tensor, tuple[()]]:
    return loss(params, batch), ()


def _mixed(loss: Loss, has_aux: bool, params: Params, batch: Any) -> Any:
    inputs, ends, touched = (params, batch), [], []
    if is_plain_wanted(inputs):  # nothing is kept for a backward pass
        grads, aux = reverse(loss, True, params, batch)
        return (grads, aux) if has_aux else grads

    def run(leaves: Sequence[Tensor], ends: list[Any] | None = None) -> tuple[Tensor, ...]:
        grads, aux = reverse(loss, True, *tree.rebuild_step(*inputs, leaves))
        touched[:] = grads
        if ends is not None:
            ends.append(aux)
        return (*grads.values(), *tree.leaves(aux))

    pullback = partial(forward_over_reverse, loss, inputs, touched)
    outputs = custom_vjp(partial(run, ends=ends), pullback, tree.step_leaves(*inputs), plain=run)
    aux = ends.pop()
    grads = dict(zip(touched, outputs, strict=False))
    return (grads, tree.rebuild(aux, outputs[len(grads) :])) if has_aux else grads


def forward_over_reverse(
    loss: Loss,
    inputs: tuple[Params, Any],
    touched: Sequence[str],
    leaves: Sequence[Tensor],
    needed: Sequence[bool],
    cotangents: Sequence[Tensor],
) -> list[Tensor | None]:
    """The pullback of (∇ℓ, aux): one jvp of the gradient of ℓ + s·⟨u, aux⟩ along (θ: v, s: 1) at s
    = 0. ``touched`` names the parameters that have a gradient, and so a cotangent.
    """
    _load_forward_rules()
    n_params, dtype = len(inputs[0]), leaves[0].dtype.to_real()
    given, on_aux = cotangents[: len(touched)], cotangents[len(touched) :]
    still = [torch.zeros_like(leaf) for leaf in leaves[:n_params]]
    along = tree.fill(still, [name in touched for name in inputs[0]], given)

    def augmented(s: Tensor, all_leaves: list[Tensor], *wanted: Tensor) -> Tensor:
        value, aux = loss(*tree.rebuild_step(*inputs, tree.fill(all_leaves, needed, wanted)))
        return value + s * sum(
            (u.conj() * a).real.sum() for u, a in zip(on_aux, tree.leaves(aux), strict=True)
        )

    def full_gradient(s: Tensor, *thetas: Tensor) -> tuple[Tensor, ...]:
        all_leaves = [*thetas, *leaves[n_params:]]
        wanted = [leaf for leaf, need in zip(all_leaves, needed, strict=True) if need]
        return torch.func.grad(augmented, argnums=tuple(range(2, 2 + len(wanted))))(
            s, all_leaves, *wanted
        )

    s = torch.zeros((), dtype=dtype, device=leaves[0].device)
    at, direction = (s, *leaves[:n_params]), (torch.ones_like(s), *along)
    try:
        with one_thread:
            products = torch.func.jvp(full_gradient, at, direction)[1]
    except NotImplementedError as error:
        raise SimudyError(
            "torch has no forward derivative of an operation in this loss: use gradient=Reverse(). "
            f"{str(error).splitlines()[0]}"
        ) from error
    return tree.fill([None] * len(leaves), needed, products)


@cache
def _load_forward_rules() -> None:
    """torch loads its forward-mode rules at the first jvp, through a call it has itself deprecated:
    do so quietly.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))
