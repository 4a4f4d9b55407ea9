"""The pages of settings, made when the site is built: nothing on them is written by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from keys import CONF, OPEN, Key, flat, general, load, option
from mkdocs.structure.files import File

from simudy.app.settings.meaning import based_on, comments, head

__all__ = ["CONF", "flat"]
GROUPS = (
    *("data", "model", "inner", "victim", "attack", "gradient", "adjoint", "outer"),
    *("outer/schedule", "tracker", "pruner"),
)
LISTS = {"experiment": "Experiments", "sweep": "Sweeps", "debug": "For trying things out"}

INTRO = """# Settings

Every setting is a `key=value` behind `simudy`; what is misspelt or of the wrong type ends with one
line that says so.

The keys that a chosen option adds (`data=cifar10`, `inner=adam`, …): [Groups](groups.md).
Ready-made combinations: [Experiments and sweeps](experiments.md)."""
GROUPS_INTRO = """# Groups

`group=option` chooses one of these; its keys are then `group.key=value`. A key that is not in the
option's file wants a `+`: `+model.bias=all`. Something of your own goes by
`group._target_=my_package.MyClass` ([Extend](../guides/extend/optimizer.md))."""
LISTS_INTRO = """# Experiments and sweeps

`simudy experiment=NAME sweep=NAME data.root=DATA`. The figures are under
[Results](../results/index.md)."""


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
    for key in general():
        section, dot, _ = key.name.partition(".")
        sections.setdefault(section if dot else "", []).append(key)
    notes = comments(CONF / "config.yaml")
    parts = [INTRO, "## A run as a whole", table(sections.pop(""))]
    for section, keys in sections.items():
        parts += [f"## {section}", sentences(notes.get(section, "")), table(keys)]
    return page(parts)


def groups_page() -> str:
    """Each option of each group, with its keys."""
    parts = [GROUPS_INTRO]
    for group in GROUPS:
        parts.append(f"## {group}")
        for path in sorted((CONF / group).glob("*.yaml")):
            base = based_on(path)
            parts += [f"### `{group}={path.stem}`", sentences(head(path))]
            parts += [f"Otherwise as `{group}={base}`." if base else "", made_of(path)]
            parts.append(table(option(path)))
    return page(parts)


def lists_page() -> str:
    """Every ready-made experiment and sweep, with the sentence at the head of its file."""
    parts = [LISTS_INTRO]
    for group, title in LISTS.items():
        rows = [
            f"| `{group}={path.stem}` | {cell(head(path))} |"
            for path in sorted((CONF / group).glob("*.yaml"))
        ]
        parts += [f"## {title}", "\n".join(["| setting | what |", "|---|---|", *rows])]
    return page(parts)


def made_of(path: Path) -> str:
    """What an option builds."""
    target, note = load(path).get("_target_"), comments(path).get("_target_", "")
    if not target:
        return sentences(note)
    return f"`{target}`" + (f": {cell(note)}" if note else "")


def page(parts: list[str]) -> str:
    """Blocks of Markdown, one below the other."""
    return "\n\n".join(part for part in parts if part) + "\n"


def table(keys: list[Key]) -> str:
    """Keys as a table; whole groups have a page of their own."""
    rows = [
        f"| `{key.name}` | {cell(key.type)} | {shown(key.default)} | {cell(key.meaning)} |"
        for key in keys
        if key.name not in GROUPS
    ]
    if not rows:
        return ""
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def shown(value: Any) -> str:
    """A default as it is typed."""
    if value is OPEN or value in ("???", "MISSING"):
        return "*must be given*"
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    if isinstance(value, (list, tuple)):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, str) and value.startswith("= "):
        return f"`{value.removeprefix('= ')}`"
    return f"`{value}`" if isinstance(value, (int, float, str)) else f"`{type(value).__name__}`"


def cell(text: str) -> str:
    """Text that is safe inside a table."""
    text = re.sub(r"``(.+?)``", r"`\1`", text).replace("|", "\\|")
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else plain(part) for part in parts).strip()


def plain(text: str) -> str:
    """Text whose signs mean nothing to Markdown, but for addresses, which become links."""
    parts = re.split(r"(https?://\S+)", text)
    escaped = [re.sub(r"([_*])", r"\\\1", part).replace("<", "&lt;") for part in parts]
    return "".join(f"<{parts[i]}>" if i % 2 else part for i, part in enumerate(escaped))


def sentences(text: str) -> str:
    """A comment as prose: its first sentence, and where it says more, a list of the rest."""
    first, *rest = re.split(r"(?<=[.:]) (?=Published|Measured|Here)", cell(text))
    first = first[:1].upper() + first[1:]
    return "\n".join([first, *([""] if rest else []), *(f"- {line}" for line in rest)])
