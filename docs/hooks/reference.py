"""The pages of the API, made at build time from the public names themselves: a new name is on its
page without anybody writing it there.
"""

from __future__ import annotations

import inspect
from typing import Any

from mkdocs.structure.files import File

import simudy
import simudy.dynamics.optim as optim
import simudy.testing as testing

TRAINING = ("simudy.dynamics",)
OPTIMIZERS = ("simudy.dynamics.optim",)
TESTING = ("check_optimizer", "directional")

INTRO = {
    "api/training.md": "# Differentiating through training\n\n"
    "[Differentiate through training](../guides/differentiate.md) is the guide to these.",
    "api/optimizers.md": "# Optimizers\n\n"
    "All of `simudy.dynamics.optim`. [Optimizers](../guides/optimizers.md) is the guide to these.",
    "api/attack.md": "# Attack and score\n\n"
    "[Architecture](../architecture.md) says how these meet.",
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those of the site."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Markdown by path."""
    found = {path: [text] for path, text in INTRO.items()}
    for name in sorted(simudy.__all__, key=str.lower):
        if page_of(home := path_of(getattr(simudy, name))) != "api/optimizers.md":
            found[page_of(home)].append(f"::: {home}")
    for name in sorted(optim.__all__, key=str.lower):
        found["api/optimizers.md"].append(f"::: {path_of(getattr(optim, name))}")
    for name in TESTING:
        found["api/training.md"].append(f"::: {path_of(getattr(testing, name))}")
    return {"api/index.md": index(), **{path: "\n\n".join(t) + "\n" for path, t in found.items()}}


def index() -> str:
    """The table of all public names."""
    rows = [
        f"| [`{name}`]({page_of(path_of(it)).removeprefix('api/')}#{path_of(it)}) "
        f"| {first_sentence(it)} |"
        for name in sorted(simudy.__all__, key=str.lower)
        for it in [getattr(simudy, name)]
    ]
    head = [
        "# API",
        "",
        "What `from simudy import …` gives. `simudy.dynamics.optim` has more rules, wrappers and "
        "schedules: [Optimizers](optimizers.md).",
        "",
        "| name | what |",
        "|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


def page_of(home: str) -> str:
    """Where a name is described."""
    if home.startswith(OPTIMIZERS):
        return "api/optimizers.md"
    return "api/training.md" if home.startswith(TRAINING) else "api/attack.md"


def path_of(thing: Any) -> str:
    """The module and name a public object was defined under."""
    return f"{thing.__module__}.{thing.__qualname__}"


def first_sentence(thing: Any) -> str:
    """What the docstring begins with, on one line."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".").replace("``", "`").replace("|", "\\|")
