"""Running statistics of the norms in train mode, moved as torch moves them, but out of place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from simudy.dynamics.model.norms import moved_statistics, statistics
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
    theirs = {part for name in names for part in statistics_of(name)}

    def keep(*_: Any) -> None:
        own = {k: b for k, b in module.named_buffers() if k not in theirs}
        buffers.update({k: moved.get(id(b), b) for k, b in own.items()})

    hooks = [module.register_forward_hook(keep)]
    for name in names:
        move = partial(_move, name, buffers)
        hooks.append(module.get_submodule(name).register_forward_pre_hook(move))
    try:
        with moved_statistics() as moved:
            yield
    finally:
        for hook in hooks:
            hook.remove()


def statistics_of(layer: str) -> list[str]:
    """Names of the buffers of a norm."""
    parts = "num_batches_tracked", "running_mean", "running_var"
    return [f"{layer}.{part}".lstrip(".") for part in parts]


def _move(name: str, buffers: Params, layer: Any, args: tuple[Tensor, ...]) -> None:
    count, mean, square = statistics_of(name)
    instances = isinstance(layer, _InstanceNorm)  # which counts nothing
    if not instances and count in buffers:
        buffers[count] = buffers[count] + 1
    factor: Any = layer.momentum
    if factor is None:  # the plain mean of all batches so far
        factor = 0.0 if instances else 1 / buffers[count].to(buffers[mean].dtype)
    inputs = args[0]
    if instances and inputs.ndim == layer._get_no_batch_dim():
        inputs = inputs[None]
    found = statistics(inputs, [*([] if instances else [0]), *range(2, inputs.ndim)])
    for part, value in zip((mean, square), found, strict=True):
        old = buffers[part]
        buffers[part] = (1 - factor) * old + factor * value.to(old.dtype)
