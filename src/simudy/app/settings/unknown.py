"""Settings that nobody reads: refused, with the full path of those that were perhaps meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from omegaconf import DictConfig

from simudy.errors import SimudyError

_OPEN = ("outer.lrs", "hydra")  # mappings whose keys are free, or Hydra's own


def refuse_unknown(cfg: DictConfig, known: DictConfig) -> None:
    """Refuse what ``+key=…`` or a file added where no ``_target_`` takes it.

    Args:
        known: the schema's defaults. A node with a ``_target_`` is its target's to judge.

    Raises:
        SimudyError: a key is not in the schema.
    """
    paths = list(_paths(known))
    for path in _surplus(cfg, known):
        raise SimudyError(unknown_setting(path, paths))


def unknown_setting(path: str, known: Iterable[str]) -> str:
    """``no setting a.b: did you mean a.c?``"""
    known = [name for name in known if not name.endswith("_target_")]
    last = path.rpartition(".")[2]
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.8)
    near += [name for name in known if name.rpartition(".")[2] == last and name not in near]
    near = near or difflib.get_close_matches(path, known, n=3, cutoff=0.6)
    if near:
        return f"no setting {path}: did you mean {' or '.join(near[:3])}?"
    beside = [name for name in known if name.rpartition(".")[0] == path.rpartition(".")[0]]
    choices = ", ".join(beside or known)
    return f"no setting {path}" + (f": choose from {choices}" if choices else "")


def _surplus(cfg: DictConfig, known: DictConfig, above: str = "") -> Iterator[str]:
    names = set(known.keys())  # `in` overlooks what has no value yet
    for key in map(str, cfg):
        path = f"{above}{key}"
        if key not in names and path not in _OPEN:
            yield path
        elif path not in _OPEN and _is_plain(cfg, key) and _is_plain(known, key):
            yield from _surplus(cfg[key], known[key], f"{path}.")


def _is_plain(cfg: DictConfig, key: str) -> bool:
    """A mapping without a target."""
    node = cfg._get_node(key)
    return isinstance(node, DictConfig) and not node._is_none() and "_target_" not in node


def _paths(node: DictConfig, above: str = "") -> Iterator[str]:
    for key in map(str, node):
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _paths(child, f"{above}{key}.")
        else:
            yield f"{above}{key}"
