"""What each setting means, in the program's own words: the comments of ``conf/``, and docstrings
behind a ``_target_``, read without importing it. The one source of ``--help`` and of the site.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import yaml

import simudy

# The sections that a part of the library answers to, whose docstring explains their keys.
EXPLAINED = {
    "recipe": "simudy.dynamics.recipe.Recipe",
    "outer": "simudy.attack.search.Outer",
    "evidence": "simudy.attack.evidence.Evidence",
    "dummy": "simudy.attack.dummy.new_dummy",
}
# Fields of a method of attack that another setting fills in.
SHARED = {
    "distance": "distance",
    "tv": "prior.tv",
    "colour": "prior.colour",
    "box": "prior.box",
    "term": "prior.term",
    "images": "dummy.images",
    "decay": "dummy.decay",
    "start": "dummy.start",
    "labels": "dummy.labels",
    "noise": "dummy.noise",
    "learn": "dummy.learn",
    "recipe": "attack.recipe",
    "adjoint": "adjoint",
    "gradient": "gradient",
}
GUESS = "the attacker's guess; null: as the victim's"

_SOURCE = Path(simudy.__file__).parent
_SECTION = re.compile(r"^(?:Args|Attributes):\n((?:    .*\n|\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w[\w, ]*)(?: \(.*?\))?: *(.*(?:\n {5,}.*)*)", re.MULTILINE)


def conf() -> Path:
    """The folder of the settings' files."""
    spec = find_spec("simudy.conf")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def comments(path: Path) -> dict[str, str]:
    """The comment above or behind each key of a YAML file, by dotted name; the one at the top is
    the file's own.
    """
    found: dict[str, str] = {}
    stack: list[str] = []
    above: list[str] = []
    for line in _below_head(path.read_text().splitlines()):
        match = re.match(r"^(\s*)([\w/]+):(.*)$", line)
        if match:
            stack[len(match[1]) // 2 :] = [match[2]]
            behind = re.findall(r"\s#\s*(.+)$", match[3])
            if note := " ".join([*above, *behind]):
                found[".".join(stack).removesuffix("._target_")] = note
        above = [*above, line.strip().lstrip("# ")] if line.strip().startswith("#") else []
    return found


def based_on(path: Path) -> str:
    """The file of the same group that this one starts from, if any."""
    entries = (yaml.safe_load(path.read_text()) or {}).get("defaults", [])
    return next((name for name in entries if isinstance(name, str) and name != "_self_"), "")


def head(path: Path) -> str:
    """The comment at the top of a file, in one line."""
    lines = path.read_text().splitlines()
    top = lines[: len(lines) - len(_below_head(lines))]
    return " ".join(line.lstrip("# ") for line in top if "@package" not in line)


def _below_head(lines: list[str]) -> list[str]:
    while lines and lines[0].startswith("#"):
        lines = lines[1:]
    return lines


@cache
def documented(target: str) -> dict[str, str]:
    """What the docstring of one of simudy's classes or functions says of each argument; a class
    asks those it derives from too. Empty for what is not simudy's.
    """
    module, _, name = target.rpartition(".")
    if not module.startswith("simudy"):
        return {}
    found = next(_definitions(name, _SOURCE.joinpath(*module.split(".")[1:])), None)
    if found is None:
        return {}
    notes: dict[str, str] = {}
    for base in found.bases if isinstance(found, ast.ClassDef) else ():
        notes |= documented(f"simudy.{base.id}") if isinstance(base, ast.Name) else {}
    return notes | arguments_in(ast.get_docstring(found) or "")


def arguments_in(docstring: str) -> dict[str, str]:
    """The sections of arguments and attributes of a docstring, by name."""
    notes: dict[str, str] = {}
    for section in _SECTION.findall(inspect.cleandoc(docstring) + "\n"):
        for names, said in _ENTRY.findall(section):
            words = " ".join(said.split()).rstrip(".")
            words = re.sub(r"\bNone\b", "null", words)  # as a person types it
            notes |= dict.fromkeys(re.split(r",\s*", names), words)
    return notes


def source_comments(owner: type) -> dict[str, str]:
    """The comments behind the fields of a dataclass."""
    return dict(re.findall(r"^    (\w+): .*?#\s*(.+)$", inspect.getsource(owner), re.MULTILINE))


def _definitions(name: str, place: Path) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """Where a class or function is defined, within a module or a package."""
    file = place.with_suffix(".py")
    for path in [file] if file.is_file() else sorted(place.rglob("*.py")):
        text = path.read_text()
        if re.search(rf"^(class|def) {name}\b", text, re.MULTILINE):
            for node in ast.parse(text).body:
                if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
                    yield node
