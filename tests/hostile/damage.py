"""Ways to spoil a file."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

Damage = Callable[[Path], object]
ODD = (None, True, -1, 0, 1e308, 10**30, "word", "", [], [1, "a"], {}, {"_target_": "os.system"})
SHAPES = (b"[]", b"{}", b"null", b"1", b'"x"', b"[" * 100_000, b"{" * 5000, b"\xff\xfe\x00", b"\0")


def _replace(path: Path) -> None:
    """Make room for something else of this name."""
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)


def cut(share: float) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip(seed: int, count: int) -> Damage:
    """Other bits in random bytes."""

    def spoil(path: Path) -> None:
        content, rng = bytearray(path.read_bytes()), random.Random(seed)
        for _ in range(count):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(content))

    return spoil


def noise(seed: int) -> Damage:
    return lambda path: path.write_bytes(random.Random(seed).randbytes(1000))


def content(whole: bytes) -> Damage:
    def spoil(path: Path) -> None:
        _replace(path)
        path.write_bytes(whole)

    return spoil


def directory(path: Path) -> None:
    _replace(path)
    path.mkdir()


def fifo(path: Path) -> None:
    _replace(path)
    os.mkfifo(path)


def device(path: Path) -> None:
    _replace(path)
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    _replace(path)
    path.symlink_to(path.name)


def gone(path: Path) -> None:
    path.unlink()


def resealed(inner: Damage) -> Damage:
    """A checkpoint whose hash is right, whatever it holds."""

    def spoil(path: Path) -> None:
        path.write_bytes(path.read_bytes().partition(b"\n")[2])
        inner(path)
        body = path.read_bytes()
        path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    return spoil


ANY_FILE: dict[str, Damage] = {
    **{f"cut{share}": cut(share) for share in (0.0, 0.1, 0.5, 0.9)},
    **{f"flip{seed}": flip(seed, 1 + 3 * seed) for seed in range(4)},
    "noise": noise(0),
    "directory": directory,
    "fifo": fifo,
    "device": device,
    "loop": loop,
    "gone": gone,
}
TEXT: dict[str, Damage] = {f"shape{i}": content(whole) for i, whole in enumerate(SHAPES)}


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to every value in plain data."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node[:2])
    for key, value in pairs:
        yield (*at, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*at, key))


def odd_value(place: tuple[Any, ...], value: Any) -> Damage:
    """Another value somewhere in json or yaml."""

    def spoil(path: Path) -> None:
        plain = yaml.safe_load(path.read_text())
        node = plain
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        dump = yaml.safe_dump if path.suffix == ".yaml" else json.dumps
        path.write_text(dump(plain))

    return spoil


def lacking(place: tuple[Any, ...]) -> Damage:
    """Without a value."""

    def spoil(path: Path) -> None:
        plain = yaml.safe_load(path.read_text())
        node = plain
        for key in place[:-1]:
            node = node[key]
        del node[place[-1]]
        dump = yaml.safe_dump if path.suffix == ".yaml" else json.dumps
        path.write_text(dump(plain))

    return spoil
