"""Which classes a file that is read back may name: ours, torch's, and what this very call names
too.

A name is judged before anything is imported, and what it leads to once more by where it was
defined: ``simudy.files.os.system`` begins like ours and is not.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from typing import Any

from simudy.errors import SimudyError

PACKAGES = ("simudy.", "torch.nn.", "torch.optim.")
HOMES = (  # of the classes themselves
    "simudy.attack.",
    "simudy.dynamics.",
    "simudy.victim.",
    "torch.nn.modules.",
    "torch.optim.",
)
SCHEDULES = "simudy.dynamics.optim."  # functions are trusted here alone


def require_trusted(name: Any, where: str, key: str, *, named: Collection[str] = ()) -> Any:
    """What ``name`` stands for.

    Args:
        name: a dotted path that a file gives.
        where: the file, for the message.
        key: the setting that would name it on the command line.
        named: what the command line names itself.

    Raises:
        SimudyError: neither we nor the command line vouch for it.
    """
    if isinstance(name, str) and name in named:
        return find(name)
    path = str(name)
    known = re.fullmatch(r"\w+(\.\w+)+", path) and path.startswith(PACKAGES)
    found = find(path) if known else None
    if found is None or not _is_ours(found):
        raise SimudyError(
            f"{where} names {path[:100]}, which is not simudy's or torch's own: if you trust it, "
            f"add {key}={path[:100]} to the command"
        )
    return found


def targets_of(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every ``(key, name)`` that plain data would have imported."""
    if isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from targets_of(value, f"{key}.{i}")
    if not isinstance(node, Mapping):
        return
    if node.get("_target_") is not None:
        yield f"{key}._target_".lstrip("."), node["_target_"]
        if str(node["_target_"]).startswith("hydra.") and "path" in node:  # get_method and its like
            yield f"{key}.path".lstrip("."), node["path"]
    for name, value in node.items():
        yield from targets_of(value, f"{key}.{name}".lstrip("."))


def find(path: str) -> Callable[..., Any] | None:
    """What a dotted path stands for, or None."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def _is_ours(found: Any) -> bool:
    home = f"{getattr(found, '__module__', '')}."
    if inspect.isclass(found):
        return home.startswith(HOMES)
    return inspect.isfunction(found) and home.startswith(SCHEDULES)
