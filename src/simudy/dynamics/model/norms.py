"""Normalisation written out in plain operations.

torch's fused kernels keep the mean and the spread of the forward pass as numbers. Under ``vmap``
the graph through them is lost, and the third derivative, which a second derivative of a simulated
run needs, is wrong. The same values computed step by step have every derivative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from simudy.errors import SimudyError

_moved: ContextVar[dict[int, Tensor] | None] = ContextVar("moved", default=None)
_NARROW = (torch.float16, torch.bfloat16)  # statistics are taken in float32, as torch does


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """``F.layer_norm`` over the last ``len(normalized_shape)`` dimensions."""
    if tuple(input.shape[-len(normalized_shape) :]) != tuple(normalized_shape):
        raise SimudyError(
            f"layer_norm over {tuple(normalized_shape)} met an input of shape "
            f"{tuple(input.shape)}: its last dimensions must be those"
        )
    values = _standardised(input, list(range(-len(normalized_shape), 0)), eps)
    return _shifted(values, weight, bias).to(_out_dtype(input))


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """``F.rms_norm``: divided by the root mean square, not centred."""
    values = wide(input)
    eps = torch.finfo(values.dtype).eps if eps is None else eps
    square = values.square().mean(list(range(-len(normalized_shape), 0)), keepdim=True)
    return _shifted(values * (square + eps).rsqrt(), weight, None).to(input.dtype)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm``; in training the running statistics are left alone, for no step reads
    them, but that ``moved_statistics`` takes note.
    """
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    _move(input, [0, *range(2, input.ndim)], (running_mean, running_var), momentum)
    return _by_channel(input, [0, *range(2, input.ndim)], weight, bias, eps)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.instance_norm``; with the input's statistics the running ones are left alone, too."""
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    _move(input, list(range(2, input.ndim)), (running_mean, running_var), momentum)
    return _by_channel(input, list(range(2, input.ndim)), weight, bias, eps)


@contextmanager
def moved_statistics() -> Iterator[dict[int, Tensor]]:
    """Within it, calls in train mode by functions alone (``F.batch_norm``) say what would be in the
    running statistics that they are given: by ``id`` of these.
    """
    token = _moved.set(moved := {})
    try:
        yield moved
    finally:
        _moved.reset(token)


def statistics(input: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over ``dims``, and then over the instances where these are none
    of them.
    """
    found = wide(input).mean(dims), wide(input).var(dims)
    return found if 0 in dims else (found[0].mean(0), found[1].mean(0))


def _move(
    input: Tensor, dims: list[int], running: tuple[Tensor | None, Tensor | None], momentum: float
) -> None:
    if (moved := _moved.get()) is None:
        return
    for old, value in zip(running, statistics(input, dims), strict=True):
        if old is not None:
            now = moved.get(id(old), old)
            moved[id(old)] = (1 - momentum) * now + momentum * value.to(now.dtype)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``torch._weight_norm``, which holds the norm constant in its second derivative: torch's own
    gradgradcheck fails on it.
    """
    # dim −1, which is torch's None, leaves out none
    others = [d for d in range(v.ndim) if d != dim]
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


def _by_channel(
    input: Tensor, dims: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Standardised over ``dims``, then scaled and shifted by channel, which is dimension 1."""
    if all(input.shape[d] == 1 for d in dims):
        raise SimudyError(
            f"a norm that takes its statistics from an input of shape {tuple(input.shape)} has one "
            "value per channel, which leaves nothing: use larger batches, or eval mode"
        )
    shape = [-1, *[1] * (input.ndim - 2)]
    weight, bias = (None if p is None else p.reshape(shape) for p in (weight, bias))
    return _shifted(_standardised(input, dims, eps), weight, bias).to(input.dtype)


def _standardised(input: Tensor, dims: list[int], eps: float) -> Tensor:
    values = wide(input)
    centred = values - values.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _shifted(values: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        values = values * weight
    return values if bias is None else values + bias


def wide(input: Tensor) -> Tensor:
    """As torch takes statistics of it: not in half precision."""
    return input.float() if input.dtype in _NARROW else input


def _out_dtype(input: Tensor) -> torch.dtype:
    # autocast on CUDA has layer_norm give float32
    autocast = input.is_cuda and torch.is_autocast_enabled("cuda")
    return torch.float32 if autocast and input.dtype in _NARROW else input.dtype
