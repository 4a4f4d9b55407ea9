"""Running statistics of the norms in train mode, moved as torch moves them, but out of place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from simudy.dynamics.model.norms import wide
from simudy.dynamics.tree import Params


def tracking(module: nn.Module) -> list[str]:
    """Names of the norms that move their running statistics when called."""
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, _NormBase)
        and layer.training
        and layer.track_running_stats
        and layer.running_mean is not None
    ]


@contextmanager
def moving(module: nn.Module, names: Sequence[str], buffers: Params) -> Iterator[None]:
    """Within it, a call of ``module`` leaves its buffers in ``buffers``: the norms of these names
    their statistics, and other layers what they write themselves.
    """
    theirs = {part for name in names for part in _statistics(name)}

    def keep(*_: Any) -> None:
        buffers.update((k, b) for k, b in module.named_buffers() if k not in theirs)

    hooks = [module.register_forward_hook(keep)]
    for name in names:
        move = partial(_move, name, buffers)
        hooks.append(module.get_submodule(name).register_forward_pre_hook(move))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _statistics(layer: str) -> list[str]:
    parts = "num_batches_tracked", "running_mean", "running_var"
    return [f"{layer}.{part}".lstrip(".") for part in parts]


def _move(name: str, buffers: Params, layer: Any, args: tuple[Tensor, ...]) -> None:
    count, mean, square = _statistics(name)
    instances = isinstance(layer, _InstanceNorm)  # which counts nothing
    if not instances and count in buffers:
        buffers[count] = buffers[count] + 1
    factor: Any = layer.momentum
    if factor is None:  # the plain mean of all batches so far
        factor = 0.0 if instances else 1 / buffers[count].to(buffers[mean].dtype)
    found = _by_instance(layer, args[0]) if instances else _by_channel(args[0])
    for part, value in zip((mean, square), found, strict=True):
        old = buffers[part]
        buffers[part] = (1 - factor) * old + factor * value.to(old.dtype)


def _by_channel(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel, which is dimension 1."""
    dims = [0, *range(2, inputs.ndim)]
    return wide(inputs).mean(dims), wide(inputs).var(dims)


def _by_instance(layer: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The same of each instance, then the mean over them."""
    if inputs.ndim == layer._get_no_batch_dim():
        inputs = inputs[None]
    dims = list(range(2, inputs.ndim))
    return wide(inputs).mean(dims).mean(0), wide(inputs).var(dims).mean(0)
