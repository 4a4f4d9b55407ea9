"""Frozen BatchNorm folded into the convolution before it: the same function, without a pass over
the activations.

In eval mode BatchNorm is y ↦ s·y + t by channel, with s = γ/√(σ² + ε) and t = β − μs. After a
convolution with weight W and bias b that is a convolution with weight sW and bias sb + t, exactly.
γ and β keep their gradients, which now come from the weight instead of from every activation, in
each derivative anew. Where the weight is the larger of the two nothing would be gained, and the
pair is computed as it stands.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import cast

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fold_batchnorm(module: nn.Module) -> None:
    """Fold, in place, every frozen BatchNorm of ``module`` that one convolution alone feeds.

    The parameters keep their names. A module that cannot be traced stays as it is, and so does a
    pair with hooks.
    """
    for convolution, norm in _pairs(module):
        convolution.forward = partial(_folded, convolution, norm)  # type: ignore[method-assign]
        norm.forward = _same  # type: ignore[method-assign]


def _folded(convolution: _ConvNd, norm: _BatchNorm, inputs: Tensor) -> Tensor:
    if (
        inputs.numel() < convolution.weight.numel()
    ):  # then it is cheaper to pass over the activations
        plain = convolution._conv_forward(inputs, convolution.weight, convolution.bias)
        return type(norm).forward(norm, plain)
    scale, shift = _affine(norm)
    weight = convolution.weight * scale.view(-1, *[1] * (convolution.weight.ndim - 1))
    bias = shift if convolution.bias is None else convolution.bias * scale + shift
    return convolution._conv_forward(inputs, weight, bias)


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """s and t by channel."""
    scale = (norm.running_var + norm.eps).rsqrt()  # type: ignore[operator]
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale  # type: ignore[operator]
    return scale, shift if norm.bias is None else shift + norm.bias


def _same(inputs: Tensor) -> Tensor:
    return inputs


def _pairs(module: nn.Module) -> Iterator[tuple[_ConvNd, _BatchNorm]]:
    """Convolutions called once whose only consumer is a frozen BatchNorm called once."""
    nodes = _calls(module)
    often = [str(node.target) for node in nodes]
    layers = dict(module.named_modules(remove_duplicate=False))
    for node in nodes:
        norm, source = layers[str(node.target)], node.args[0] if node.args else None
        if (
            not _is_frozen(norm)
            or not isinstance(source, fx.Node)
            or source not in nodes
            or len(source.users) > 1
        ):
            continue
        convolution = layers[str(source.target)]
        once = often.count(str(node.target)) == often.count(str(source.target)) == 1
        if once and type(convolution) in _CONVOLUTIONS and not _hooked(convolution, norm):
            yield cast(_ConvNd, convolution), cast(_BatchNorm, norm)


def _calls(module: nn.Module) -> list[fx.Node]:
    """The calls of layers in ``module.forward``, in order."""
    held = [(layer, dict(layer._buffers)) for layer in module.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = fx.Tracer().trace(module)
        except Exception:  # whatever a forward does with a stand-in for its input
            return []
        finally:
            for layer, buffers in held:  # a forward may have put a stand-in among its buffers
                layer._buffers.update(buffers)
    return [node for node in graph.nodes if node.op == "call_module"]


def _is_frozen(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and not layer.training and layer.running_mean is not None


def _hooked(*layers: nn.Module) -> bool:
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
