"""No second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from simudy.dynamics import tree
from simudy.dynamics.custom_vjp import is_followed
from simudy.dynamics.gradient.base import Gradient, Loss, size
from simudy.dynamics.gradient.reverse import reverse
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


@dataclass(frozen=True)
class FirstOrder(Gradient):
    """Inexact by name: every ∇ℓ is taken for a constant, so that no second derivative is.

    What is left is how the rule handles constant gradients: θ0 reaches the end as in FOMAML (for
    SGD as by the identity), rates, momenta and decays as far as they act directly. Batches receive
    nothing, and are refused where they ask for a gradient: an attack cannot use this mode. Memory
    per step: the gradient. Time: that of training.

    Reference: Finn et al., arXiv:1703.03400 (FOMAML); Nichol et al., arXiv:1803.02999 (Reptile).

    Raises:
        SimudyError: a derivative by the batches is asked for, or by a tensor that the loss reads
            from elsewhere.
    """

    def of(self, loss: Loss, *, has_aux: bool = False) -> Callable[[Params, Any], Any]:
        if has_aux:
            raise SimudyError(
                "FirstOrder() has nothing to save inside of another mode: use it alone"
            )
        return partial(_constant_gradient, loss)

    def bind(
        self, loss: Loss, params: Params, batches: Sequence[Any], rules: Sequence[Any]
    ) -> tuple[Params, Any]:
        if any(map(is_followed, filter(tree.is_float, tree.leaves(list(batches))))):
            raise SimudyError(
                "FirstOrder() has no derivative by the batches, which would be a second one: "
                "detach() them, or use Reverse()"
            )
        return super().bind(loss, params, batches, rules)

    def kept(self, params: Params, activations: int) -> int:
        return size(params)


def _constant_gradient(loss: Loss, params: Params, batch: Any) -> Params:
    grads = reverse(loss, False, tree.detach(params), batch)
    if any(grad.requires_grad for grad in grads.values()):
        raise SimudyError(
            "FirstOrder() takes gradients for constants, and the loss uses a tensor that requires "
            "grad but is not in params: detach() it, or use Reverse()"
        )
    return grads
