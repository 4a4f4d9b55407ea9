"""What a function of tensors computes: the operations it runs, and the constants in them.

Whatever a function reads besides its arguments (attributes, closures, buffers, files) can change
its results only by way of these. Two runs of one signature on inputs of one layout are runs of one
function, unless it asks its arguments for numbers, which is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakTensorKeyDictionary

from simudy.dynamics.ambient import autocast_states
from simudy.errors import SimudyError

_READERS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.item}


@dataclass(eq=False)
class Signature:
    """Equal, and of one hash, for runs of one function."""

    operations: tuple[Any, ...]
    constants: tuple[Tensor, ...]

    def __hash__(self) -> int:
        return hash(self.operations)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Signature) or self.operations != other.operations:
            return False
        return all(map(torch.equal, self.constants, other.constants))


def signature(fn: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]) -> Signature:
    """Run ``fn(*tensors)`` once and note what it does.

    Raises:
        SimudyError: it reads numbers out of a tensor that it was given, or picks as many entries as
            the numbers say.
    """
    run = _Run()
    for i, tensor in enumerate(tensors):
        run.name(tensor, f"input {i} {layout(tensor)}", depends=True)
    with run, _NoReading():
        results = fn(*tensors)
    ends = tuple(run.described(result) for result in results)
    return Signature((autocast_states(), *run.operations, ends), tuple(run.constants))


def layout(tensor: Tensor) -> tuple[Any, ...]:
    """All of a tensor but its numbers."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


class _Run(TorchDispatchMode):
    """Names every tensor by where it comes from, and notes each operation by these names."""

    def __init__(self) -> None:
        super().__init__()
        self.names = WeakTensorKeyDictionary()
        self.operations: list[str] = []
        self.constants: list[Tensor] = []

    def name(self, tensor: Tensor, name: str, *, depends: bool) -> None:
        self.names[tensor] = (name, depends)

    def described(self, node: Any) -> str:
        if isinstance(node, (list, tuple)):
            return f"[{', '.join(map(self.described, node))}]"
        if not isinstance(node, Tensor):
            return f"{type(node).__name__} {node!r}"
        if node not in self.names:
            self.name(node, f"constant {len(self.constants)} {layout(node)}", depends=False)
            self.constants.append(node.detach().clone())
        return self.names[node][0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, tuple((kwargs or {}).items()))
        described = self.described(given)
        tensors = [x for x in tree_iter(given) if isinstance(x, Tensor)]
        depends = any(self.names[x][1] for x in tensors)
        if depends and _picks_by_number(func, args):
            raise SimudyError(f"{func} gives as many entries as the numbers say")
        result = func(*args, **(kwargs or {}))
        for i, out in enumerate(tree_iter(result)):
            if isinstance(out, Tensor):
                self.name(out, f"{len(self.operations)}.{i}", depends=depends)
        self.operations.append(f"{func} {described}")
        return result


class _NoReading(TorchFunctionMode):
    """Floats that were read as numbers show when a graph is tried on others; integers need not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READERS and not args[0].is_floating_point():
            raise SimudyError(f"the loss reads integers out of a tensor ({func.__name__})")
        return func(*args, **(kwargs or {}))


def _picks_by_number(func: Any, args: Any) -> bool:
    if func is torch.ops.aten.index.Tensor:
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return torch.Tag.dynamic_output_shape in func.tags
