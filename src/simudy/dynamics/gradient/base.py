"""What a gradient mode is: how ∇ℓ is computed and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from simudy.dynamics.tree import Params

Loss = Callable[[Params, Any], Any]


class Gradient:
    """Base of the gradient modes.

    A mode turns ``loss(params, batch) -> scalar`` into ``grads(params, batch) -> Params``, itself
    differentiable. All of them give the same numbers. A parameter that the loss does not touch on
    this batch is missing from ``grads``, as its ``grad`` is None in torch; one whose gradient is
    zero is there. With ``has_aux`` the loss returns
    ``(scalar, aux)``, aux a tree of tensors, and the gradient ``(grads, aux)``.
    """

    def of(self, loss: Loss, *, has_aux: bool = False) -> Callable[[Params, Any], Any]:
        """∇ℓ with respect to ``params``: a function of ``(params, batch)``."""
        raise NotImplementedError

    def bind(
        self, loss: Loss, params: Params, batches: Sequence[Any], rules: Sequence[Any]
    ) -> tuple[Params, Any]:
        """What a simulation starts with: ``params`` as this mode holds them, and their gradient."""
        return params, self.of(loss)

    def chosen(self, loss: Loss, params: Params, batches: Sequence[Any]) -> list[str]:
        """Names of the weights that are held as low-rank factors. Default: none."""
        return []

    def kept(self, params: Params, activations: int) -> int:
        """Bytes kept of each step for its derivative, in about.

        Args:
            params: θ0.
            activations: bytes that the layers put out on one batch.
        """
        raise NotImplementedError

    def leaner(self) -> Gradient | None:
        """The next mode that keeps less and takes longer, or None: this one is the leanest."""
        return None


def size(params: Params) -> int:
    """Bytes of all tensors together."""
    return sum(p.numel() * p.element_size() for p in params.values())
