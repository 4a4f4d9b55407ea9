"""Objects out of nodes: the one place that calls Hydra's ``instantiate``."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from simudy.app.settings.check import check, locate, parameters
from simudy.errors import SimudyError
from simudy.trust import targets_of


def build(node: Any, where: str, *, keep_nulls: bool = False, **filled: Any) -> Any:
    """The object that a node with a ``_target_`` describes.

    Args:
        node: a node or plain data.
        where: the key it stands under, for messages.
        keep_nulls: nulls are values; otherwise they stand for the target's own default and are
            dropped.
        filled: fields given from here where the target takes them and the node leaves them open.

    Raises:
        SimudyError: the node does not fit its target, or the target refuses it.
    """
    fields = fields_of(node, where, keep_nulls=keep_nulls)
    takes = parameters(locate(fields["_target_"], where))
    check(fields, where)
    fields = {**{k: v for k, v in filled.items() if k in takes}, **fields}
    try:
        return instantiate(fields, _convert_="all", **_vouched(fields))
    except InstantiationException as error:
        raise _complaint(error, where) from error


def build_partial(node: Any, where: str) -> Any:
    """What a node describes, to be called with what the node cannot say."""
    return build({**fields_of(node, where), "_partial_": True}, where)


def build_function(node: Any, where: str) -> Callable[..., Any]:
    """What a node describes, to be called with tensors: a function, its other arguments filled in,
    or an object of a class.

    Raises:
        SimudyError: the node does not fit its target, or an object of it cannot be called.
    """
    target = locate(fields_of(node, where)["_target_"], where)
    made = build(node, where) if inspect.isclass(target) else build_partial(node, where)
    if not callable(made):
        raise SimudyError(
            f"{where}._target_={target.__qualname__} makes nothing that can be called: name a "
            "function, or a class with __call__"
        )
    return made


def fields_of(node: Any, where: str, *, keep_nulls: bool = False) -> dict[str, Any]:
    """The fields of a node as plain data.

    Raises:
        SimudyError: the node is no mapping with a ``_target_``.
    """
    fields = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(fields, Mapping) or not fields.get("_target_"):
        group = where.replace(".", "/")
        raise SimudyError(
            f"{where} names no _target_: choose a file of conf/{group}/, or set {where}._target_"
        )
    return dict(fields) if keep_nulls else drop_nulls(fields)


def drop_nulls(node: Any) -> Any:
    """Plain data less the keys whose null stands for a default: those at the top and those beside a
    ``_target_``. In any other mapping, as ``{pattern: rule or null}``, null is a value.
    """
    if not isinstance(node, Mapping):
        return [drop_nulls(item) for item in node] if isinstance(node, list) else node
    return {str(k): _inner(value) for k, value in node.items() if value is not None}


def _inner(value: Any) -> Any:
    if isinstance(value, Mapping) and "_target_" not in value:
        return {str(k): _inner(v) for k, v in value.items()}
    return drop_nulls(value)


def allow_own_modules() -> None:
    """``my_rules.SignSGD`` is looked for in the working directory too, as ``python -m`` would."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _vouched(fields: dict[str, Any]) -> dict[str, Any]:
    """From Hydra 1.4 on, ``instantiate`` wants to be told what it may call: what was checked."""
    if "_execution_whitelist_" not in inspect.signature(instantiate).parameters:
        return {}
    return {"_execution_whitelist_": sorted({str(name) for _, name in targets_of(fields)})}


def _complaint(error: InstantiationException, where: str) -> SimudyError:
    cause: BaseException = error.__cause__ or error
    if isinstance(cause, SimudyError):
        return cause
    reason = " ".join(f"{type(cause).__name__}: {cause}".split())
    return SimudyError(f"{where} cannot be made ({reason}): see {where}._target_ for what it takes")
