"""Parameters in any nest of dicts, lists and tuples, as the flat dict that everything else reads.

The name of a tensor is its way from the root, joined by dots, as in a module: ``layers.0.weight``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


def is_flat(params: Any) -> bool:
    """Whether these are tensors by name already."""
    return isinstance(params, dict) and all(isinstance(leaf, Tensor) for leaf in params.values())


def named(nest: Any) -> Params:
    """The tensors of a nest, by name.

    Raises:
        SimudyError: it holds something else, or two tensors would have one name.

    Example:
        >>> import torch
        >>> list(named({"layers": [torch.ones(1), torch.ones(1)], "scale": torch.ones(1)}))
        ['layers.0', 'layers.1', 'scale']
    """
    flat: Params = {}
    for name, leaf in _leaves(nest, ""):
        if not isinstance(leaf, Tensor):
            raise SimudyError(
                f"the parameter {name!r} is a {type(leaf).__name__}: give dicts, lists and tuples "
                "of tensors, and what is no tensor to the loss"
            )
        if name in flat:
            raise SimudyError(f"two parameters are called {name!r}: leave dots out of the names")
        flat[name] = leaf
    return flat


def nested(flat: Params, like: Any, name: str = "") -> Any:
    """The inverse of ``named``: the tensors in the form of ``like``."""
    if isinstance(like, Tensor):
        return flat[name]
    parts = {key: nested(flat, part, _join(name, key)) for key, part in _children(like)}
    if isinstance(like, Mapping):
        return dict(zip(like, parts.values(), strict=True))
    return type(like)(*parts.values()) if hasattr(like, "_fields") else type(like)(parts.values())


def by_names(
    simulate: Callable[..., Any], loss: Any, params: Any, *run: Any, observe: Any, **options: Any
) -> Any:
    """``simulate`` on ``params`` that are not flat: loss and ``observe`` see them as they came, and
    so do they come back.
    """
    watch = observe and (lambda t, flat, value: observe(t, nested(flat, params), value))
    found = simulate(NestedLoss(loss, params), named(params), *run, observe=watch, **options)
    if isinstance(found, tuple):
        return nested(found[0], params), *found[1:]
    return nested(found, params)


@dataclass(frozen=True)
class NestedLoss:
    """``loss`` of a nest like ``like``, as a loss of tensors by name."""

    loss: Callable[[Any, Any], Any]
    like: Any

    def __call__(self, params: Params, batch: Any) -> Any:
        return self.loss(nested(params, self.like), batch)


def _leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, (Mapping, list, tuple)):
        yield name, node
        return
    for key, child in _children(node):
        yield from _leaves(child, _join(name, key))


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
    yield from ((str(key), child) for key, child in pairs)


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
