"""Sums over the processes of ``torch.distributed``, and what is the same on all of them.

Each of the two is the derivative of the other, of any order and in forward mode.

Reference: the pair of operators of Shoeybi et al., Megatron-LM, arXiv:1909.08053, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simudy.dynamics import tree
from simudy.errors import SimudyError


def place(group: Any, *, of: str) -> tuple[int, int]:
    """This process's rank, and how many there are.

    Args:
        of: what asks, for the message.

    Raises:
        SimudyError: the processes do not know each other.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise SimudyError(
            f"{of} needs processes that know each other: start with torchrun, and call "
            "torch.distributed.init_process_group first"
        )
    return dist.get_rank(group), dist.get_world_size(group)


def same(group: Any, values: Any) -> Any:
    """A tree, alike on every process; what comes back along its floating tensors is summed."""
    leaves = tree.leaves(values)
    floats = [tree.is_float(leaf) for leaf in leaves]
    taken = Same.apply(group, *(x for x, f in zip(leaves, floats, strict=True) if f))
    return tree.rebuild(values, tree.fill(leaves, floats, taken))


class Same(torch.autograd.Function):
    """The values as they are, the same on every process; what comes back is summed over them."""

    @staticmethod
    def forward(group: Any, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.group = inputs[0]

    @staticmethod
    def backward(ctx, *cotangents: Tensor):  # type: ignore[override]
        needed = ctx.needs_input_grad[1:]
        wanted = (v for v, need in zip(cotangents, needed, strict=True) if need)
        sums = Summed.apply(ctx.group, *wanted)
        return None, *tree.fill([None] * len(needed), needed, sums)

    @staticmethod
    def jvp(ctx, _, *tangents: Tensor):  # type: ignore[override]
        return Same.apply(ctx.group, *tangents)

    @staticmethod
    def vmap(info, in_dims, *args):
        return Same.apply(*args), in_dims[1:]


class Summed(torch.autograd.Function):
    """The sums over all processes; what comes back is the same on each, and goes on as it is."""

    @staticmethod
    def forward(group: Any, *values: Tensor) -> tuple[Tensor, ...]:
        return summed(group, values)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.group = inputs[0]

    @staticmethod
    def backward(ctx, *cotangents: Tensor):  # type: ignore[override]
        return None, *Same.apply(ctx.group, *cotangents)

    @staticmethod
    def jvp(ctx, _, *tangents: Tensor):  # type: ignore[override]
        return Summed.apply(ctx.group, *tangents)

    @staticmethod
    def vmap(info, in_dims, *args):
        return Summed.apply(*args), in_dims[1:]


def summed(group: Any, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One all-reduce for each type among the values, whatever their number."""
    sums: list[Tensor] = list(values)
    for kind in dict.fromkeys(value.dtype for value in values):
        places = [i for i, value in enumerate(values) if value.dtype == kind]
        flat = torch.cat([values[i].reshape(-1) for i in places])
        dist.all_reduce(flat, group=group)
        for i, part in zip(places, flat.split([values[i].numel() for i in places]), strict=True):
            sums[i] = part.view(values[i].shape)
    return tuple(sums)
