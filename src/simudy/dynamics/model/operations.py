"""What torch differentiates wrongly, or not at all, is computed by other operations with the same
values, wherever a loss calls it: in a layer, in a forward of one's own, in a bare function.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from simudy.dynamics.model import norms, recurrent
from simudy.errors import SimudyError


def exact_operations() -> AbstractContextManager[Any]:
    """Within it, in this thread, every call of torch that ``_EXACT`` names is the one given
    there.
    """
    stack = _get_current_function_mode_stack()
    on = any(isinstance(mode, _ExactOperations) for mode in stack)
    return nullcontext() if on else _ExactOperations()


class _ExactOperations(TorchFunctionMode):
    # torch's fast paths of attention, which have no derivative, step aside where a mode is on.
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_EXACT.get(func) or func)(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention`` on the math kernel, the only one with second
    derivatives.
    """
    # Choosing it by torch.nn.attention.sdpa_kernel would choose it for every thread.
    return torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


# torch's own function, which inside calls attention where no mode sees it: so it is given ours.
_multi_head_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {
        **vars(F),
        "scaled_dot_product_attention": _attention,
        "has_torch_function": lambda tensors: False,
    },
    argdefs=F.multi_head_attention_forward.__defaults__,
)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """``F.embedding`` with a dense gradient: a sparse one has no forward derivative."""
    for option, value in {
        "padding_idx": padding_idx,
        "max_norm": max_norm,
        "scale_grad_by_freq": scale_grad_by_freq or None,
    }.items():
        if value is not None:
            raise SimudyError(
                f"F.embedding with {option} has no exact second derivative in torch: leave "
                f"{option} out, and multiply the output by a mask where rows are padding"
            )
    return F.embedding(input, weight)


def _refused(name: str, instead: str, *args: Any, **kwargs: Any) -> Any:
    raise SimudyError(f"{name} has no exact second derivative in torch: {instead}")


def _read(own: Callable[..., Any], tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``tensor.item()`` and its like, for tensors that are constants."""
    if tensor.requires_grad:
        raise SimudyError(
            f"the loss reads a number out of a tensor ({own.__name__}), whose derivative would be "
            "lost: keep it a tensor, or detach() first what does not enter the loss"
        )
    return own(tensor, *args, **kwargs)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * gate.sigmoid()


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6


_EXACT: dict[Any, Callable[..., Any]] = {
    F.layer_norm: norms.layer_norm,
    torch.layer_norm: norms.layer_norm,
    F.rms_norm: norms.rms_norm,
    torch.rms_norm: norms.rms_norm,
    F.batch_norm: norms.batch_norm,
    torch.batch_norm: lambda x, w, b, mean, var, training, momentum, eps, cudnn: norms.batch_norm(
        x, mean, var, w, b, training, momentum, eps
    ),
    F.instance_norm: norms.instance_norm,
    torch.instance_norm: lambda x, w, b, mean, var, stats, momentum, eps, cudnn: (
        norms.instance_norm(x, mean, var, w, b, stats, momentum, eps)
    ),
    torch._weight_norm: norms.weight_norm,  # pyright: ignore[reportPrivateImportUsage]
    **recurrent.REPLACED,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    F.embedding: _embedding,
    F.glu: _glu,
    F.hardsigmoid: _hardsigmoid,
    **{
        own: partial(_read, own)
        for own in (Tensor.item, Tensor.__float__, Tensor.__int__, Tensor.tolist, Tensor.numpy)
    },
    **{
        function: partial(_refused, name, instead)
        for name, instead, functions in (
            (
                "native_layer_norm",
                "call F.layer_norm",
                (torch.native_layer_norm, torch.ops.aten.native_layer_norm),
            ),
            (
                "native_batch_norm",
                "call F.batch_norm",
                (torch.native_batch_norm, torch.ops.aten.native_batch_norm),
            ),
            (
                "embedding_bag",
                "call F.embedding and take a sum or mean over its words",
                (F.embedding_bag, torch.embedding_bag),
            ),
            ("cdist", "call (a[:, None] − b).norm(dim=-1)", (torch.cdist,)),
            ("ctc_loss", "train on another criterion", (F.ctc_loss, torch.ctc_loss)),
        )
        for function in functions
    },
}
