"""A module made fit to be differentiated twice: what torch gets wrong is rewritten on our copy, or
refused.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations

from simudy.errors import SimudyError


def refuse_inexact(module: nn.Module) -> None:
    """Raise a SimudyError for a layer that cannot be called with parameters of our own, whose steps
    are random, or that has no second derivative.
    """
    for name, layer in module.named_modules():
        if reason := _closed(layer) or _random(layer) or _underivable(layer):
            raise SimudyError(f"layer {name!r} ({type(layer).__name__}) {reason}")


def _closed(layer: nn.Module) -> str | None:
    if isinstance(layer, torch.jit.ScriptModule):
        return "is compiled by torch.jit; pass the Python module that it was made from"
    if "_orig_mod" in layer._modules:
        return "is compiled by torch.compile; pass the module itself, which it holds as _orig_mod"
    if isinstance(layer, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "spreads a module over devices; pass that module, which it holds as module"
    if {"FullyShardedDataParallel", "FSDPModule"} & {kind.__name__ for kind in type(layer).__mro__}:
        return "holds shards of its weights (FSDP); pass the module before it is sharded"
    if any(map(is_lazy, (*layer.parameters(False), *layer.buffers(False)))):
        return "does not know its shape yet; call the module once on a batch"
    return None


def refuse_gradient_hooks(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raise a SimudyError for a parameter with a hook on its gradient: it would not be called."""
    for name, parameter in named:
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise SimudyError(
                f"parameter {name!r} has a hook on its gradient, which no simulation runs: remove "
                "it, and say what it does by a wrapper of the rule, as in ClippedByValue(SGD())"
            )


def rewrite(module: nn.Module) -> None:
    """Give the layers of ``module``, in place, the same values by operations that torch
    differentiates rightly.
    """
    for layer in module.modules():
        if isinstance(layer, _NormBase) and layer.training:
            layer.track_running_stats = False  # normalise by the batch, update nothing
        elif isinstance(layer, nn.Embedding):
            layer.sparse = False  # a sparse gradient has no forward derivative


def _random(layer: nn.Module) -> str | None:
    rate = layer.p if isinstance(layer, _DropoutNd) else getattr(layer, "dropout", 0.0)
    if layer.training and isinstance(rate, float) and rate > 0:
        return (
            "drops units at random in train mode, so the run cannot be simulated; put it in eval "
            "mode or set its "
            "rate to 0"
        )
    if layer.training and isinstance(layer, nn.RReLU):
        return (
            "draws its slopes at random in train mode, so the run cannot be simulated; put it in "
            "eval mode"
        )
    if isinstance(layer, (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)):
        return (
            "draws its regions at random, so the run cannot be simulated; use MaxPool or "
            "AdaptiveMaxPool"
        )
    return None


def _underivable(layer: nn.Module) -> str | None:
    if layer.training and isinstance(layer, parametrizations._SpectralNorm):
        return "takes power iterations outside of the graph in train mode; put it in eval mode"
    if isinstance(layer, nn.EmbeddingBag):
        return "has no second derivative in torch; use Embedding and a sum or mean over its words"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return (
            "shortens its weight in place, outside of the graph, where max_norm is set; set "
            "max_norm=None"
        )
    if isinstance(layer, nn.Embedding) and layer.scale_grad_by_freq:
        return (
            "has a wrong second derivative in torch with scale_grad_by_freq; set "
            "scale_grad_by_freq=False"
        )
    if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
        return (
            "has a row that feels no gradient with padding_idx, which no second derivative in "
            "torch respects; set "
            "padding_idx=None and multiply the output by a mask"
        )
    hooks = {type(hook).__module__ for hook in layer._forward_pre_hooks.values()}
    if hooks & {"torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"}:
        return (
            "computes its weight in a hook, which torch has deprecated; use "
            "torch.nn.utils.parametrizations instead"
        )
    return None
