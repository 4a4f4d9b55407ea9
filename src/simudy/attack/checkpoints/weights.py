"""Weights as people keep them: one file or several, nested, prefixed, in half precision.

``load_weights`` reads a file without running anything in it. ``weights_of`` finds in it what the
module has, by names and shapes, and says how it was found.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import types
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypedDict

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from simudy.dynamics.tree import Params
from simudy.errors import SimudyError
from simudy.files import read_json

_DEPTH = 4  # of nesting in a checkpoint
_SHOWN = 3  # names, where two sides do not fit
_WRAPPERS = ("module", "_orig_mod")  # DataParallel, torch.compile; they stand anywhere in a name
_INDEX = ".index.json"
_FOLDER = tuple(
    name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", _INDEX)
)
_BESIDE = {  # as Trainer and accelerate name them
    "optimizer": ("optimizer.pt", "optimizer.bin"),
    "scheduler": ("scheduler.pt", "scheduler.bin"),
}
_HARMLESS = [  # what stands beside weights in checkpoints, and does nothing when it is unpickled
    *(argparse.Namespace, types.SimpleNamespace, pathlib.PosixPath, pathlib.PurePosixPath),
    *(datetime.datetime, datetime.date, datetime.timedelta),
    np.dtype,
    np.ndarray,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"),
]


class _Index(TypedDict):
    """The shape of ``model.safetensors.index.json``."""

    weight_map: dict[str, str]


class _Trainer(TypedDict):
    """What counts in ``trainer_state.json``."""

    global_step: int


@dataclass(frozen=True)
class Fitted:
    """A module's weights out of a file.

    Attributes:
        tensors: by the module's own names, as the file holds them; names that the module ties hold
            the same tensor.
        origin: what was done to find them, for a person; empty where the file holds them plainly.
    """

    tensors: Params
    origin: str


def load_weights(path: str | Path) -> Any:
    """What a file of weights holds: a ``.safetensors`` file, a ``.pt``/``.pth``/``.ckpt``/``.bin``
    file (read with ``weights_only=True``), or a Hugging Face folder, with the states of the
    optimizer and its scheduler and the count of steps that lie in it.

    Raises:
        SimudyError: no such file, or not one that can be read without running code.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise SimudyError(f"no weights at {path}: give an existing .safetensors or .pt file")
    try:
        return _shards(path) if path.name.endswith(_INDEX) else _one(path)
    except (
        SafetensorError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        OverflowError,
        UnpicklingError,
    ) as error:
        if isinstance(error, SimudyError):
            raise
        raise SimudyError(
            f"cannot read weights from {path} ({_reason(path, error)}): save a state_dict again"
        ) from error


def weights_of(
    module: nn.Module, loaded: Any, *, what: str, part: str | None = None, lenient: bool = False
) -> Fitted:
    """The weights of ``module`` in what a file held.

    Args:
        loaded: what ``load_weights`` gave.
        what: ``the initial weights``, for messages.
        part: where in the checkpoint they lie (``ema``, ``state_dict``), where several fit.
        lenient: a file without such a part is searched as if none was named.

    Raises:
        SimudyError: nothing in it fits the module by names and shapes.
    """
    expected = {k for k, v in module.state_dict().items() if _is_tensor(v)}
    found = [(where, *_best_prefix(tensors, expected)) for where, tensors in _parts(loaded)]
    if not found:
        raise SimudyError(
            f"{what}: the file holds no dict of tensors: save it with "
            "torch.save(model.state_dict(), path)"
        )
    if part is not None and not (lenient and all(one[0] != part for one in found)):
        found = [one for one in found if one[0] == part] or _no_part(what, part, found)
    where, prefix, tensors = max(found, key=lambda one: _hits(one[2], expected))
    hits = _hits(tensors, expected)
    others = [one[0] for one in found if _hits(one[2], expected) == hits and one[0] != where]
    tensors = _tied(tensors, module, what)
    _require_fit(tensors, module, what)
    return Fitted(tensors, _told(where, prefix, others))


def _hits(tensors: Params, expected: Set[str]) -> int:
    return len(tensors.keys() & expected)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


# --- reading


def _folder(folder: Path) -> Any:
    """The weights in it, and the states beside them."""
    path = _in_folder(folder)
    beside = {
        kind: load_weights(folder / name)
        for kind, names in _BESIDE.items()
        for name in names
        if (folder / name).is_file()
    }
    if (told := folder / "trainer_state.json").is_file():
        beside.update(read_json(told, _Trainer, "take it out of the folder"))
    weights = load_weights(path)
    return {path.name: weights, **beside} if beside else weights


def _in_folder(folder: Path) -> Path:
    names = [name for name in _FOLDER if (folder / name).is_file()]
    if not names:
        raise SimudyError(
            f"no weights in the folder {folder}: it holds none of {', '.join(_FOLDER)}, so give a "
            "file"
        )
    return folder / names[0]


def _safetensors(path: Path) -> Params:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        aliases = file.metadata() or {}  # save_model stores tied weights once, and their names here
    tied = {k: tensors[v] for k, v in aliases.items() if k not in tensors and v in tensors}
    return {**tensors, **tied}


def _shards(index: Path) -> Params:
    remedy = "give the file of weights itself"
    names = read_json(index, _Index, remedy)["weight_map"].values()
    shards = [_one(index.parent / Path(name).name) for name in sorted(set(names))]
    return {name: tensor for shard in shards for name, tensor in shard.items()}


def _one(path: Path) -> Any:
    return _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)


def _pickled(path: Path) -> Any:
    with torch.serialization.safe_globals(_HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(path: Path, error: BaseException) -> str:
    """Why, on one line; where code would have to run, whose."""
    if isinstance(error, UnpicklingError):
        try:
            with torch.serialization.safe_globals(_HARMLESS):
                if names := torch.serialization.get_unsafe_globals_in_checkpoint(path):
                    return f"it would run {', '.join(sorted(names)[:_SHOWN])}"
        except Exception:  # no archive at all
            return "no file of torch.save"
    return (str(error).splitlines() or [type(error).__name__])[0]


# --- finding


def _parts(loaded: Any, where: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Params]]:
    """Every dict of named tensors in it, and where it lies."""
    if not isinstance(loaded, Mapping) or not depth:
        return
    tensors = {k: v for k, v in loaded.items() if isinstance(k, str) and _is_tensor(v)}
    if tensors:
        yield where, tensors
    for key, value in loaded.items():
        if isinstance(key, str):
            yield from _parts(value, f"{where}.{key}".lstrip("."), depth - 1)


def _best_prefix(tensors: Params, expected: Set[str]) -> tuple[str, Params]:
    """The prefix under which most of the expected names stand, and what stands under it.

    Names are taken as they are, or without the wrappers inside them, whichever fits better.
    """
    bare = {".".join(p for p in k.split(".") if p not in _WRAPPERS): v for k, v in tensors.items()}
    candidates = [_under_prefix(named, expected) for named in (tensors, bare)]
    return max(candidates, key=lambda one: _hits(one[1], expected))


def _under_prefix(tensors: Params, expected: Set[str]) -> tuple[str, Params]:
    counts = Counter(p for k in tensors for p in _prefixes(k) if k[len(p) :] in expected)
    prefix = max(counts, key=lambda p: (counts[p], -len(p)), default="")
    return prefix, {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:i]) + "." * bool(i) for i in range(len(parts)))


def _told(where: str, prefix: str, others: list[str]) -> str:
    words = [f"taken from {where!r}"] if where else []
    words += [f"prefix {prefix!r} removed"] if prefix else []
    if others:
        names = ", ".join(map(repr, others))
        words.append(f"{names} would fit too: evidence_from_weights(part={others[0]!r})")
    return ", ".join(words)


def _no_part(what: str, part: str, found: list[Any]) -> Any:
    names = ", ".join(repr(one[0]) for one in found if one[0]) or "none"
    raise SimudyError(f"{what} have no part {part!r}: the file's parts are {names}")


def _tied(tensors: Params, module: nn.Module, what: str) -> Params:
    """Names that the module ties, each with the tensor that the file holds under one of them."""
    tied: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    for names in (names for names in tied.values() if len(names) > 1):
        held = [tensors[name] for name in names if name in tensors]
        if any(not torch.equal(held[0], other) for other in held[1:]):
            raise SimudyError(
                f"{what} hold different tensors for {' and '.join(map(repr, names))}, which the "
                "model ties: untie them in `model`"
            )
        tensors = {**tensors, **dict.fromkeys(names, *held[:1])} if held else tensors
    return tensors


def _require_fit(tensors: Params, module: nn.Module, what: str) -> None:
    own = module.state_dict(keep_vars=True)
    missing = [k for k, _ in module.named_parameters() if k not in tensors]
    surplus = [k for k in tensors if k not in own]
    sides = f"the model has {_first(own)}, the file {_first(tensors)}"
    if missing:
        raise SimudyError(
            f"{what} lack {missing[0]!r} ({len(missing)} missing in all): they are of another "
            f"model than `model` ({sides})"
        )
    if surplus:
        raise SimudyError(
            f"{what} hold {surplus[0]!r}, which the model has not ({len(surplus)} in all): they "
            f"are of another model than `model` ({sides})"
        )
    for name, tensor in tensors.items():
        _require_kind(name, tensor, own[name], what)


def _require_kind(name: str, tensor: Tensor, own: Tensor, what: str) -> None:
    if tensor.shape != own.shape:
        shapes = f"{tuple(tensor.shape)}, the model's {tuple(own.shape)}"
        raise SimudyError(
            f"{what}: {name!r} has shape {shapes}: set the model's sizes to the file's"
        )
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise SimudyError(f"{what}: {name!r} is no plain tensor: save it dense and dequantised")
    if tensor.is_complex() and not own.is_complex():
        raise SimudyError(f"{what}: {name!r} is complex, the model's is not: set another `model`")
    if own.is_floating_point() and not tensor.is_floating_point():
        raise SimudyError(
            f"{what}: {name!r} holds {str(tensor.dtype).removeprefix('torch.')}: save it "
            "dequantised, as floating numbers"
        )


def _first(names: Any) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")
