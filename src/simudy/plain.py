"""Does plain data (numbers, words, lists, mappings) have the shape that a type hint declares?

Settings, and every file that is read back, are checked here, by the annotations of what they are
for: ``Annotated[float, POSITIVE]``, ``list[int]``, ``Literal["a", "b"]``, a ``TypedDict``.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from simudy.ranges import MEASURED, Length, Range

_LARGEST, _LARGEST_FLOAT = 2**63, 3.4e38  # what tensors can hold


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value can stand for ``hint``. Where the hint is beyond plain data, the target
    itself decides.
    """
    return misfit(value, hint, "") is None


def misfit(value: Any, hint: Any, where: str) -> str | None:
    """What is wrong with ``value`` and what to give instead, or None where it fits.

    Args:
        value: plain data.
        hint: a type hint, as ``typing.get_type_hints(…, include_extras=True)`` returns it.
        where: the key it stands under, for the message.
    """
    wrong = f"{where}={_short(value)}: give {named(hint, value)}"
    bare, limits = _unwrapped(hint)
    if _is_union(bare):
        return _misfit_of_all(value, hint, where, wrong)
    origin, args = typing.get_origin(bare) or bare, typing.get_args(bare)
    if origin is typing.Literal:
        return None if value in args else wrong
    if origin in _ATOMS:
        if not isinstance(value, _ATOMS[origin]) or (
            isinstance(value, bool) and origin is not bool
        ):
            return wrong
        numeric = origin in (int, float) and MEASURED not in limits
        ok = not numeric or (is_finite(value) and all(value in limit for limit in limits))
        return None if ok else wrong
    if typing.is_typeddict(origin):
        return _misfit_of_fields(value, origin, where, wrong)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if not isinstance(value, (list, tuple)) or any(len(value) not in n for n in limits):
            return wrong
        if (count := _fixed(origin, args)) is not None and len(value) != count:
            return f"{where}={_short(value)}: give a list of {count}"
        return _first(misfit(v, _entry(args), f"{where}[{i}]") for i, v in enumerate(value))
    if _is_ours(origin) and not isinstance(value, (Mapping, origin)):
        return wrong
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return wrong
        inner = args[1] if len(args) == 2 else Any
        return _first(misfit(v, inner, f"{where}.{k}") for k, v in value.items())
    return None


def named(hint: Any, value: Any = None) -> str:
    """A hint in plain words, as a remedy: ``a number, 0 or more``.

    Args:
        value: what was given in its place; infinity and NaN are answered with ``finite``.
    """
    bare, limits = _unwrapped(hint)
    if _is_union(bare):
        return " or ".join(named(part, value) for part in _parts(hint) if is_plain(part))
    if typing.get_origin(bare) is typing.Literal:
        return " or ".join(map(str, typing.get_args(bare)))
    words = _WORDS.get(bare, _kind(bare))
    if bare is float and isinstance(value, float) and not is_finite(value):
        words = "a finite number"
    lengths = [f" of {limit}" for limit in limits if isinstance(limit, Length)]
    return words + "".join([*lengths, *(f", {r}" for r in limits if isinstance(r, Range))])


def is_finite(value: float) -> bool:
    """Whether a number is neither NaN nor beyond what a tensor holds: 64 bits, or float32."""
    return abs(value) < (_LARGEST if isinstance(value, int) else _LARGEST_FLOAT)


def is_plain(hint: Any) -> bool:
    """Whether a hint is of plain data."""
    bare, _ = _unwrapped(hint)
    origin = typing.get_origin(bare) or bare
    if isinstance(origin, type) and issubclass(origin, (Sequence, Mapping)):
        return True
    return origin in _ATOMS or origin is typing.Literal or _is_union(bare)


def _misfit_of_all(value: Any, hint: Any, where: str, wrong: str) -> str | None:
    """Of a union: None if one part takes the value."""
    parts = _parts(hint)
    plain = [part for part in parts if is_plain(part)]
    found = [
        misfit(value, part, where) for part in (plain if plain and not _is_node(value) else parts)
    ]
    if None in found:
        return None
    sequences = isinstance(value, (list, tuple)) and [
        f for f in found if f and f.startswith(f"{where}[")
    ]
    return sequences[0] if sequences else wrong


def _misfit_of_fields(value: Any, shape: Any, where: str, wrong: str) -> str | None:
    if not isinstance(value, Mapping):
        return wrong
    hints = typing.get_type_hints(shape, include_extras=True)
    dot = f"{where}." if where else ""
    if missing := sorted(shape.__required_keys__ - value.keys()):
        return f"{dot}{missing[0]} is not there: give {named(hints[missing[0]])}"
    return _first(misfit(value[k], hint, dot + k) for k, hint in hints.items() if k in value)


def _first(found: Any) -> str | None:
    return next((one for one in found if one is not None), None)


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A hint without its annotations, and those of them that limit its values."""
    if typing.get_origin(hint) is not typing.Annotated:
        return hint, ()
    bare, *extras = typing.get_args(hint)
    return bare, tuple(extra for extra in extras if isinstance(extra, (Range, Length)))


def _parts(hint: Any) -> list[Any]:
    """Of a union, each with the limits that the whole has."""
    bare, limits = _unwrapped(hint)
    return [
        typing.Annotated[(part, *limits)] if limits and part in (int, float) else part  # type: ignore[valid-type]
        for part in typing.get_args(bare)
    ]


def _is_node(value: Any) -> bool:
    """Whether a value describes an object, which is beyond plain data."""
    return not isinstance(value, (*_PLAIN, list, tuple)) and (
        not isinstance(value, Mapping) or "_target_" in value
    )


def _is_ours(origin: Any) -> bool:
    """Whether a hint is a class of simudy's, for which no number or word can stand."""
    return (
        isinstance(origin, type)
        and origin.__module__.startswith("simudy.")
        and not typing.is_typeddict(origin)
    )


def _is_union(bare: Any) -> bool:
    return isinstance(bare, types.UnionType) or typing.get_origin(bare) is typing.Union


def _entry(args: tuple[Any, ...]) -> Any:
    return args[0] if args else Any


def _fixed(origin: Any, args: tuple[Any, ...]) -> int | None:
    """How many entries a tuple has whose hint names each."""
    return len(args) if origin is tuple and args and Ellipsis not in args else None


def _kind(bare: Any) -> str:
    origin = typing.get_origin(bare) or bare
    if typing.is_typeddict(origin) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "a mapping"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return "a list"
    return f"a node with a _target_ that makes a {getattr(origin, '__name__', origin)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}…"


_ATOMS: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    type(None): (type(None),),
}
_PLAIN = (bool, int, float, str, type(None))
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    type(None): "null",
}


def flatten(nested: Mapping, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}, in order; empty mappings stay visible."""
    flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
