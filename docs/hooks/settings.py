"""The pages of settings, made at build time from what the program itself reads: the comments and
values of ``conf/``, the types of the schema, and the signatures and docstrings behind each
``_target_``.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from griffe import Docstring, DocstringSectionKind
from mkdocs.structure.files import File

from simudy.app.settings.check import locate
from simudy.app.settings.schema import Config

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("data", "model", "inner", "victim", "attack", "gradient", "adjoint", "outer")
LISTS = ("experiment", "sweep", "debug")
MISSING = inspect.Parameter.empty


@dataclass
class Key:
    """One setting."""

    name: str
    type: str
    default: str
    meaning: str


def on_files(files: Any, config: Any) -> Any:
    """Add the three pages to those of the site."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Markdown by path."""
    return {
        "settings/index.md": general_page(),
        "settings/groups.md": groups_page(),
        "settings/experiments.md": lists_page(),
    }


def general_page() -> str:
    """The keys of ``conf/config.yaml``, section by section."""
    sections: dict[str, list[Key]] = {}
    for key in general_keys():
        section, dot, _ = key.name.partition(".")
        sections.setdefault(section if dot else "", []).append(key)
    notes = head_comments(CONF / "config.yaml")
    parts = [INTRO, "## A run as a whole", table(sections.pop(""))]
    for section, keys in sections.items():
        parts += [f"## {section}", sentence(notes.get(section, "")), table(keys)]
    return "\n\n".join(part for part in parts if part) + "\n"


def general_keys() -> list[Key]:
    """Every key that the schema types, with the default of ``conf/config.yaml``."""
    path = CONF / "config.yaml"
    values, notes = flat(yaml.safe_load(path.read_text())), comments(path)
    found = []
    for name, (kind, default, said) in schema(Config).items():
        meaning = notes.get(name) or said
        found.append(Key(name, kind, shown(values.get(name, default)), meaning))
    guesses = [name for name in values if name.startswith("attack.")]
    for name in guesses:
        found.append(Key(name, "as the victim's", shown(values[name]), notes.get(name) or GUESS))
    return found


def groups_page() -> str:
    """Each option of each group, with its keys."""
    parts = [GROUPS_INTRO]
    for group in GROUPS:
        parts.append(f"## {group}")
        for path in sorted((CONF / group).glob("*.yaml")):
            title = f"### `{group}={path.stem}`"
            parts += [title, sentence(head(path)), based_on(path), table(option_keys(path))]
    return "\n\n".join(part for part in parts if part) + "\n"


def option_keys(path: Path) -> list[Key]:
    """The keys of one option: its file's, and what its ``_target_`` takes beside them."""
    node = yaml.safe_load(path.read_text()) or {}
    return list(node_keys(node, comments(path), path.parent.name))


def node_keys(node: dict[str, Any], notes: dict[str, str], at: str, inside: str = "") -> Iterator:
    """The keys of a node and of the nodes in it."""
    takes = parameters(node["_target_"]) if "_target_" in node else {}
    types = {} if takes else schema(Config, only=f"{at}.")
    for name in [*node, *(name for name in takes if name not in node)]:
        if name in ("_target_", "defaults") or (name in FILLED and name not in node):
            continue
        value, full = node.get(name), f"{at}.{name}"
        kind, default, said = takes.get(name) or types.get(full) or ("", MISSING, "")
        note = notes.get(f"{inside}{name}") or said
        if isinstance(value, dict):
            target = value.get("_target_", "")
            if target:
                yield Key(full, "node", f"`{target.rpartition('.')[2]}`", note or NODE)
            if not target.startswith("torch.") or len(value) > 1:
                yield from node_keys(value, notes, full, f"{inside}{name}.")
            continue
        given = default if value is None and default is not MISSING else value
        yield Key(full, kind, shown(given), note or SHARED.get(name, ""))


def parameters(target: str) -> dict[str, tuple[str, Any, str]]:
    """Type, default and meaning of what a class or function takes, by name."""
    if target.startswith("torch."):
        return {}
    made = locate(target, "conf")
    notes = documented(made)
    found = {}
    for name, p in inspect.signature(made).parameters.items():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        found[name] = (annotation(p.annotation), p.default, notes.get(name, ""))
    return found


def documented(made: Any) -> dict[str, str]:
    """What the docstring says of each argument; a class asks the classes it derives from too."""
    notes: dict[str, str] = {}
    for owner in reversed(made.__mro__ if inspect.isclass(made) else [made]):
        text = inspect.cleandoc(owner.__dict__.get("__doc__") or "") if owner is not object else ""
        for section in Docstring(text).parse("google", warnings=False):
            if section.kind in (DocstringSectionKind.parameters, DocstringSectionKind.attributes):
                for item in section.value:
                    for name in re.split(r",\s*", item.name):
                        notes[name] = " ".join(item.description.split())
    return notes


def lists_page() -> str:
    """Every ready-made experiment and sweep, with the sentence at the head of its file."""
    parts = [LISTS_INTRO]
    for group in LISTS:
        rows = [
            f"| `{group}={path.stem}` | {cell(head(path))} |"
            for path in sorted((CONF / group).glob("*.yaml"))
        ]
        title = {"experiment": "Experiments", "sweep": "Sweeps", "debug": "For trying things out"}
        parts += [f"## {title[group]}", "\n".join(["| setting | what |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def schema(owner: Any, *, prefix: str = "", only: str = "") -> dict[str, tuple[str, Any, str]]:
    """Type, default and trailing comment of each key of a dataclass, nested ones included."""
    hints, notes = typing.get_type_hints(owner), source_comments(owner)
    found: dict[str, tuple[str, Any, str]] = {}
    for f in fields(owner):
        name, made = prefix + f.name, f.default_factory
        default = f.default if made.__class__.__name__ == "_MISSING_TYPE" else made()  # type: ignore[misc]
        if is_dataclass(hints[f.name]):
            found |= schema(hints[f.name], prefix=f"{name}.")
        else:
            found[name] = (annotation(hints[f.name]), default, notes.get(f.name, ""))
    return {k: v for k, v in found.items() if k.startswith(only)}


def source_comments(owner: Any) -> dict[str, str]:
    """The comments behind the fields of a dataclass."""
    lines = re.findall(r"^    (\w+): .*?#\s*(.+)$", inspect.getsource(owner), re.MULTILINE)
    return dict(lines)


def comments(path: Path) -> dict[str, str]:
    """The comment behind each key of a YAML file, by dotted name."""
    found, stack = {}, []
    for line in path.read_text().splitlines():
        match = re.match(r"^(\s*)([\w/]+):\s*(.*)$", line)
        if not match:
            continue
        depth = len(match[1]) // 2
        stack[depth:] = [match[2]]
        if note := re.search(r"(?:^|\s)#\s*(.+)$", match[3]):
            found[".".join(stack)] = note[1]
    return found


def head_comments(path: Path) -> dict[str, str]:
    """The comments behind sections, such as ``recipe:  # how …``."""
    return {name: note for name, note in comments(path).items() if "." not in name}


def head(path: Path) -> str:
    """The comment at the top of a file, in one line."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.lstrip("# "))
    return " ".join(lines)


def based_on(path: Path) -> str:
    """The sentence on the option of the same group that this one starts from."""
    others = (yaml.safe_load(path.read_text()) or {}).get("defaults", [])
    names = [name for name in others if isinstance(name, str) and name != "_self_"]
    return f"Otherwise as `{path.parent.name}={names[0]}`." if names else ""


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings as dotted names."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


def annotation(kind: Any) -> str:
    """A type as a person writes it."""
    if kind is MISSING:
        return ""
    text = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    text = str(kind) if typing.get_args(kind) else text
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text).replace("Scalar", "float")
    text = text.replace(" | Tensor", "").replace("NoneType", "None").replace("None", "null")
    return {"Any": "any", "str": "text", "bool": "true or false"}.get(text, text)


def shown(value: Any) -> str:
    """A default as it is typed."""
    if value is MISSING or (isinstance(value, str) and value == "???"):
        return "*required*"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (list, tuple)):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, (int, float, str)):
        return f"`{value}`"
    return f"`{type(value).__name__}()`"


def table(keys: list[Key]) -> str:
    """Keys as a Markdown table."""
    rows = [
        f"| `{k.name}` | {cell(k.type)} | {k.default} | {cell(k.meaning)} |"
        for k in keys
        if k.name not in GROUPS
    ]
    if not rows:
        return "No keys."
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def cell(text: str) -> str:
    """Text that is safe inside a table."""
    return re.sub(r"``(.+?)``", r"`\1`", text).replace("|", "\\|").strip()


def sentence(text: str) -> str:
    """A paragraph of a comment, or nothing."""
    text = cell(text)
    return text[:1].upper() + text[1:] if text else ""


FILLED = ("shape", "classes")
NODE = "what is built, by its `_target_`"
GUESS = "the attacker's guess; `null`: as the victim did"
SHARED = {
    "shape": "filled in from the data",
    "classes": "filled in from the data",
    "lr": "step size",
}
INTRO = """# Settings

Every setting is a `key=value` behind `simudy`; what is misspelt or of the wrong type ends with one
line that says so. This page is made from `conf/config.yaml` and the schema when the site is built.

The keys that a chosen option adds (`data=cifar10`, `inner=adam`, …): [Groups](groups.md).
Ready-made combinations: [Experiments and sweeps](experiments.md)."""
GROUPS_INTRO = """# Groups

`group=option` chooses one of these; its keys are then `group.key=value`. Where a field of the class
behind an option is not in its file, set it with a `+`: `+model.bias=all`. Anything else of your own
goes by `group._target_=my_package.MyClass` ([Extend](../guides/extend/optimizer.md))."""
LISTS_INTRO = """# Experiments and sweeps

`simudy experiment=NAME sweep=NAME data.root=DATA`. The figures are under
[Results](../results/index.md)."""
