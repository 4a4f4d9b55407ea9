"""What the program itself says of its settings: the values and comments of ``conf/``, the types of
the schema, and the signatures and docstrings behind each ``_target_``.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from simudy.app.settings import meaning
from simudy.app.settings.check import locate, parameters
from simudy.app.settings.meaning import (
    EXPLAINED,
    GUESS,
    SHARED,
    based_on,
    comments,
    source_comments,
)
from simudy.app.settings.schema import Config, settings_of
from simudy.plain import named

CONF = Path(__file__).parents[2] / "conf"
OPEN = object()  # no default: must be given


@dataclass
class Key:
    """One setting, in the words a reader finds."""

    name: str
    type: str
    default: Any
    meaning: str


@dataclass
class Field:
    """What is known of an argument or of a setting in the schema."""

    type: str = ""
    default: Any = OPEN
    meaning: str = ""


def general() -> list[Key]:
    """Every key that the schema types, with the value and the comment of ``conf/config.yaml``."""
    path = CONF / "config.yaml"
    values, notes = flat(load(path)), comments(path)
    for section, chosen in chosen_options(path):
        values |= flat(load(chosen), f"{section}.")
        notes |= {f"{section}.{name}": note for name, note in comments(chosen).items()}
    keys = [
        Key(name, field.type, values.get(name, field.default), notes.get(name) or field.meaning)
        for name, field in schema(Config).items()
    ]
    known = schema(Config)
    for name in (name for name in values if name.startswith("attack.")):
        kind = known.get(name.removeprefix("attack."), Field()).type
        keys.append(Key(name, kind, values[name], notes.get(name) or GUESS))
    return keys


def chosen_options(path: Path) -> Iterator[tuple[str, Path]]:
    """The options that fill a section of the schema, unless told otherwise."""
    sections = {field.name for field in dataclasses.fields(Config)}
    for entry in load(path)["defaults"]:
        for group, name in entry.items() if isinstance(entry, dict) else ():
            if group in sections and dataclasses.is_dataclass(settings_of(Config)[group]):
                yield group, CONF / group / f"{name}.yaml"


def option(path: Path) -> list[Key]:
    """The keys of one file of a group: its own, and what its ``_target_`` takes beside them."""
    own, base = load(path), based_on(path)
    inherited = load(path.with_name(f"{base}.yaml")) if base else {}
    target = own.get("_target_") or inherited.get("_target_")
    takes = arguments(target) if target else schema(Config, under=f"{place(path)}.")
    more = [] if base or "." in place(path) else [name for name in takes if name not in own]
    return [
        key
        for name in (*own, *more)
        if name not in ("_target_", "defaults")
        for key in node(
            name,
            completed(own.get(name), inherited.get(name)),
            takes.get(name, Field()),
            comments(path),
            path,
        )
    ]


def place(path: Path) -> str:
    """Where among the settings the keys of an option's file come to stand."""
    return ".".join(path.parent.relative_to(CONF).parts)


def completed(value: Any, inherited: Any) -> Any:
    """A node that leaves its ``_target_`` to the file it starts from."""
    if isinstance(value, dict) and isinstance(inherited, dict):
        return {"_target_": inherited.get("_target_"), **value}
    return value


def node(
    name: str, value: Any, field: Field, notes: dict[str, str], path: Path, inside: str = ""
) -> Iterator[Key]:
    """One key, or a node of keys with a ``_target_`` of its own."""
    full, note = f"{place(path)}.{inside}{name}", notes.get(f"{inside}{name}")
    if isinstance(value, dict):
        target = value.get("_target_")
        takes = arguments(target) if target else schema(Config, under=f"{full}.")
        if target:
            meaning = note or field.meaning or "an object, by its `_target_`"
            yield Key(f"{full}._target_", "", target, meaning)
        for key, inner in value.items():
            if key != "_target_":
                known = takes.get(key, Field())
                yield from node(key, inner, known, notes, path, f"{inside}{name}.")
        return
    given = field.default if value is None and field.default is not OPEN else value
    shared = SHARED.get(name) if path.parent.name == "attack" and value is None else None
    if shared:
        yield Key(full, "", f"= {shared}", "as there; given here, for this method alone")
    else:
        left_out = "left out" if given is None else ""
        yield Key(full, field.type, given, note or field.meaning or left_out)


def arguments(target: str) -> dict[str, Field]:
    """What a class or function takes, by name."""
    made = locate(target, "conf")
    hints, notes = parameters(made), documented(made)
    signature = inspect.signature(made).parameters
    defaults = factories(made)
    return {
        name: Field(
            words(hint),
            defaults.get(
                name, OPEN if signature[name].default is inspect._empty else signature[name].default
            ),
            notes.get(name, "") or (f"see `{target}`" if target.startswith("torch.") else ""),
        )
        for name, hint in hints.items()
    }


def factories(made: Any) -> dict[str, Any]:
    """The defaults of a dataclass that are made anew each time."""
    fields = dataclasses.fields(made) if dataclasses.is_dataclass(made) else ()
    makers = {field.name: field.default_factory for field in fields}
    return {name: make() for name, make in makers.items() if make is not dataclasses.MISSING}


def documented(made: Any) -> dict[str, str]:
    """What the docstring says of each argument: ours as ``--help`` reads it, torch's as it is."""
    ours = meaning.documented(f"{made.__module__}.{made.__qualname__}")
    return ours or meaning.arguments_in(made.__doc__ or "")


def schema(owner: Any, *, prefix: str = "", under: str = "") -> dict[str, Field]:
    """The settings of a dataclass of the schema, nested ones included, by dotted name; those
    ``under`` a prefix without it.
    """
    notes = source_comments(owner) | documented(owner)
    section = prefix.partition(".")[0]
    explained = meaning.documented(EXPLAINED.get(section, ""))
    found: dict[str, Field] = {}
    for field in dataclasses.fields(owner):
        hint, name = settings_of(owner)[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            found |= schema(hint, prefix=f"{name}.")
            continue
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        said = notes.get(field.name) or explained.get(field.name, "")
        found[name] = Field(words(hint), default, said)
    return {k.removeprefix(under): field for k, field in found.items() if k.startswith(under)}


def load(path: Path) -> dict[str, Any]:
    """A YAML file as plain data."""
    return yaml.safe_load(path.read_text()) or {}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings as dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = isinstance(value, dict) and name != "hydra"
        found |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


def words(hint: Any) -> str:
    """A type as a person says it."""
    text = "" if hint in (Any, inspect._empty) else named(hint)
    text = re.sub(r"from (\S+) to [\d,]{9,}", r"\1 or more", text)  # as good as no end
    return text.replace(" or null", "; or null")
