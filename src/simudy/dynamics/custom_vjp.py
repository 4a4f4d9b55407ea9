"""A function of tensors with a derivative of its own: the one place that touches
``torch.autograd.Function``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad

from simudy.dynamics import tree
from simudy.dynamics.ambient import ambient_autocast
from simudy.errors import SimudyError

Value = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
Pullback = Callable[[Sequence[Tensor], Sequence[bool], Sequence[Tensor]], Sequence[Tensor | None]]

LOST = (
    "the loss uses a tensor that requires grad but is neither in params, in the batch nor a field "
    "of the optimizer, so its gradient would be lost: pass it in the batch, or use Direct() with "
    "Reverse()"
)
_again: ContextVar[bool] = ContextVar("again", default=False)


def custom_vjp(
    value: Value, pullback: Pullback, leaves: Sequence[Tensor], *, plain: Value | None = None
) -> tuple[Tensor, ...]:
    """``value(leaves)`` whose backward pass is ``pullback(leaves, needed, cotangents)``; only
    ``leaves`` are kept.

    Composes with ``torch.func`` (grad, vmap). A backward pass that is itself to be differentiated
    (``create_graph=True``, ``torch.func.grad``) is that of ``plain``. Where ``is_plain_wanted``,
    call ``plain`` instead.

    Args:
        value: runs on leaves that require no grad.
        pullback: the derivative, for a backward pass that ends there.
        leaves: everything that ``value`` depends on.
        plain: the same function by operations of torch alone. Default: ``pullback`` can itself be
            differentiated.

    Raises:
        SimudyError: ``value`` reads a tensor that requires grad and is not among ``leaves``. Its
            gradient would be lost without a word.
    """
    return _CustomVjp.apply(value, pullback, plain, *leaves)  # type: ignore[no-any-return]


def is_plain_wanted(inputs: Any) -> bool:
    """Whether a derivative of one's own is of no use: within a backward pass that is itself to be
    differentiated, and in forward mode.
    """
    return _again.get() or is_forward_mode(inputs)


def is_forward_mode(inputs: Any) -> bool:
    """Whether ``torch.func`` (jvp, jacfwd, hessian) is around this call, or a dual number among
    ``inputs``, a tree.
    """
    return TransformType.Jvp in _transforms() or any(map(_is_dual, tree.leaves(inputs)))


def is_under_vmap() -> bool:
    """Whether ``torch.func.vmap`` is around this call."""
    return TransformType.Vmap in _transforms()


def unwrapped(tensor: Tensor) -> Tensor:
    """What is beneath ``torch.func``'s wrappers: under ``vmap``, all that is mapped over."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def is_followed(tensor: Tensor) -> bool:
    """Whether a derivative by this tensor, or along it, may be asked for."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if tensor.requires_grad or _has_tangent(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return tensor.requires_grad or _has_tangent(tensor)


def reverse_pullback(
    plain: Value, leaves: Sequence[Tensor], needed: Sequence[bool], cotangents: Sequence[Tensor]
) -> list[Tensor | None]:
    """The pullback of ``plain`` in reverse mode; it may be differentiated again."""

    def of_needed(*wanted: Tensor) -> tuple[Tensor, ...]:
        outputs = plain(tree.fill(leaves, needed, wanted))
        return tuple(out for out in outputs if tree.is_float(out))  # no step counts

    wanted = (leaf for leaf, need in zip(leaves, needed, strict=True) if need)
    pull = torch.func.vjp(of_needed, *wanted)[1]
    products = pull(tuple(v for v in cotangents if tree.is_float(v)))
    return tree.fill([None] * len(leaves), needed, products)


class _CustomVjp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: Value, pullback: Pullback, plain: Value | None, *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        # On detached leaves nothing requires grad, unless a tensor came in by the back door.
        with torch.enable_grad():
            outputs = value([leaf.detach() for leaf in leaves])
        if any(out.requires_grad for out in outputs):
            raise SimudyError(LOST)
        return outputs

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, ctx.pullback, ctx.plain, *leaves = inputs
        ctx.autocast = ambient_autocast()
        ctx.save_for_backward(*leaves)

    @staticmethod
    def backward(ctx, *cotangents: Tensor):  # type: ignore[override]
        # A graph of this pass is wanted: torch's forward derivatives are not all differentiated
        # rightly, or at all, and the graph of one is the larger.
        again = torch.is_grad_enabled() and ctx.plain is not None
        pullback = _pulled_again if again else _pulled_once
        with ctx.autocast():  # what runs here ran there in the forward pass
            products = pullback(ctx, ctx.saved_tensors, ctx.needs_input_grad[3:], cotangents)
        return None, None, None, *products


def _transforms() -> list[Any]:
    return [interpreter.key() for interpreter in retrieve_all_functorch_interpreters()]


def _pulled_once(ctx: Any, *given: Any) -> Sequence[Tensor | None]:
    return ctx.pullback(*given)


def _pulled_again(ctx: Any, *given: Any) -> Sequence[Tensor | None]:
    before = _again.set(True)
    try:
        return reverse_pullback(ctx.plain, *given)
    finally:
        _again.reset(before)


def _is_dual(tensor: Tensor) -> bool:
    return _has_tangent(unwrapped(tensor))


def _has_tangent(tensor: Tensor) -> bool:
    level = forward_ad._current_level
    return level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None
