"""Trees of tensors: the algebra the rules are written in, and the seam custom autograd functions
cut along.

A *tree* is any nest of dicts, lists, tuples and dataclasses with tensors at the leaves. Parameters,
optimizer states, batches and the rules themselves (whose fields may be tensors) are all trees.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

Params = dict[str, Tensor]


def leaves(tree: Any) -> list[Tensor]:
    """The distinct tensors of a tree, in the order they are met. A tensor that appears twice is
    listed once.
    """
    seen: dict[int, Tensor] = {}
    for leaf in _walk(tree):
        seen.setdefault(id(leaf), leaf)
    return list(seen.values())


def rebuild(tree: Any, new: Sequence[Any]) -> Any:
    """A copy of ``tree`` with ``new`` in place of ``leaves(tree)``. Sharing inside the tree is
    kept.
    """
    # deepcopy consults its memo first: seeded with the new leaves it copies the structure and swaps
    # the tensors.
    memo: dict[int, Any] = {id(old): fresh for old, fresh in zip(leaves(tree), new, strict=True)}
    return copy.deepcopy(tree, memo)


def step_leaves(params: Params, batch: Any) -> list[Tensor]:
    """Every parameter, then the leaves of ``batch``. A tensor that is in both, or twice among the
    parameters, is listed for each of these places: a derivative by one place moves it there alone.
    """
    return [*params.values(), *leaves(batch)]


def rebuild_step(params: Params, batch: Any, new: Sequence[Any]) -> tuple[Params, Any]:
    """``(params, batch)`` with ``new`` in place of their ``step_leaves``."""
    return dict(zip(params, new, strict=False)), rebuild(batch, new[len(params) :])


def hiding(tree: Any) -> Any:
    """The first object in a tree that is no tree itself and yet holds tensors (a set, an object of
    another kind, a generator, a function that closes over one), or None.
    """
    if isinstance(tree, Tensor):
        return None
    inside = _inside(tree, names=False)
    if inside is None:
        return tree if _holds(tree, set()) else None
    return next((found for part in inside if (found := hiding(part)) is not None), None)


def structure(tree: Any) -> Hashable:
    """All of a tree but its tensors: names, numbers, nesting, and which places share a tensor. An
    object of another kind is the same as itself alone.
    """
    place = {id(leaf): i for i, leaf in enumerate(leaves(tree))}

    def of(node: Any) -> Hashable:
        if id(node) in place:
            return Tensor, place[id(node)]
        kind, inside = type(node), _inside(node)
        if inside is not None:
            return kind, *(of(child) for child in inside)
        if isinstance(node, (str, bytes, bool, int, float, complex, type(None), torch.dtype)):
            return kind, repr(node)
        return kind, _Itself(node)

    return of(tree)


def fill(values: Sequence[Any], needed: Sequence[bool], wanted: Sequence[Any]) -> list[Any]:
    """``values`` with the needed ones replaced, in order, by ``wanted``."""
    fresh = iter(wanted)
    return [next(fresh) if need else value for value, need in zip(values, needed, strict=True)]


def is_float(leaf: Tensor) -> bool:
    """Whether a leaf can carry a gradient."""
    return leaf.is_floating_point() or leaf.is_complex()


def map(fn: Callable[..., Any], tree: dict[str, Any], *rest: dict[str, Any]) -> dict[str, Any]:
    """Apply ``fn`` name by name over dicts with the same keys."""
    return {name: fn(leaf, *(other[name] for other in rest)) for name, leaf in tree.items()}


def add(a: Params, b: Params) -> Params:
    """``a + b``; a name that one of them lacks (an untouched parameter's gradient) counts as 0
    there.
    """
    both = {name: x + b[name] if name in b else x for name, x in a.items()}
    return {**both, **{name: y for name, y in b.items() if name not in a}}


def sub(a: Params, b: Params) -> Params:
    """``a − b``."""
    return map(lambda x, y: x - y, a, b)


def scale(factor: float | Tensor, tree: Params) -> Params:
    """``factor · tree``."""
    return map(lambda x: factor * x, tree)


def dot(a: Params, b: Params) -> Tensor:
    """Inner product over all entries: a scalar."""
    return torch.stack([inner(a[name], b[name]) for name in a]).sum()


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Inner product of two tensors; a factored weight answers for itself, without being formed."""
    if hasattr(x, "__tree_inner__"):
        return x.__tree_inner__(y)  # type: ignore[attr-defined]
    if hasattr(y, "__tree_inner__"):
        return y.__tree_inner__(x)  # type: ignore[attr-defined]
    if x.is_complex():  # as pairs of real numbers
        return (x.conj() * y).real.sum()
    return torch.dot(x.reshape(-1), y.reshape(-1))


def norm(tree: Params) -> Tensor:
    """Euclidean norm over all entries: a scalar, with gradient 0 (not NaN) at exactly zero."""
    square = dot(tree, tree)
    positive = ~(
        square <= 0
    )  # round-off can leave a factored zero negative; NaN must not pass for zero
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def flatten(tree: Params) -> Tensor:
    """All entries as one vector, in the dict's order."""
    return torch.cat([leaf.reshape(-1) for leaf in tree.values()])


def detach(tree: Params) -> Params:
    """The same values, cut from the graph."""
    return map(lambda x: x.detach(), tree)


def _walk(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor) and not hasattr(node, "__tree_children__"):
        yield node
        return
    for child in _inside(node, names=False) or ():
        yield from _walk(child)


def _holds(node: Any, met: set[int]) -> bool:
    """Whether a tensor can be reached from an object."""
    if isinstance(node, Tensor):
        return True
    if isinstance(node, (type, ModuleType, str, bytes, int, float)) or id(node) in met:
        return False
    met.add(id(node))
    parts = node.__closure__ if isinstance(node, FunctionType) else gc.get_referents(node)
    return any(_holds(part, met) for part in parts or ())


def _inside(node: Any, *, names: bool = True) -> list[Any] | None:
    """What a tree holds, with its names or without; None where it ends."""
    if hasattr(node, "__tree_children__"):
        return node.__tree_children__()
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        node = vars(node)
    if isinstance(node, dict):
        return [*node, *node.values()] if names else list(node.values())
    return list(node) if isinstance(node, (list, tuple)) else None


@dataclasses.dataclass(eq=False)
class _Itself:
    """An object by identity, which holding it keeps its own."""

    held: Any

    def __hash__(self) -> int:
        return id(self.held)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.held is self.held
