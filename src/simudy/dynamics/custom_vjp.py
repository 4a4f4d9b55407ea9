"""A function of tensors with a derivative of its own: the one place that touches
``torch.autograd.Function``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simudy.errors import SimudyError

Value = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
Pullback = Callable[[Sequence[Tensor], Sequence[bool], Sequence[Tensor]], Sequence[Tensor | None]]


def custom_vjp(value: Value, pullback: Pullback, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``value(leaves)`` whose backward pass is ``pullback(leaves, needed, cotangents)``; only
    ``leaves`` are kept.

    Composes with ``torch.func`` (grad, vmap) and may be differentiated again.

    Raises:
        SimudyError: ``value`` reads a tensor that requires grad and is not among ``leaves``. Its
            gradient would be lost without a word.
    """
    return _CustomVjp.apply(value, pullback, *leaves)  # type: ignore[no-any-return]


class _CustomVjp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Value, pullback: Pullback, *leaves: Tensor) -> tuple[Tensor, ...]:
        # On detached leaves nothing requires grad, unless a tensor came in by the back door.
        with torch.enable_grad():
            outputs = value([leaf.detach() for leaf in leaves])
        if any(out.requires_grad for out in outputs):
            raise SimudyError(
                "the loss uses a tensor that requires grad but is neither in params, in the batch "
                "nor a field of the "
                "optimizer, so its gradient would be lost: pass it in the batch, or use Direct() "
                "with Reverse()"
            )
        return outputs

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.value, ctx.pullback, *leaves = inputs
        ctx.save_for_backward(*leaves)

    @staticmethod
    def backward(ctx, *cotangents: Tensor):  # type: ignore[override]
        return None, None, *ctx.pullback(ctx.saved_tensors, ctx.needs_input_grad[2:], cotangents)
