"""The direction of imports: dynamics ← attack ← app; dynamics ← victim ← app; analysis ← app. Never
the other way.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "simudy"
ROOMS = ("dynamics", "attack", "victim", "analysis", "app")
MAY_IMPORT = {
    "dynamics": {"dynamics"},
    "attack": {"attack", "dynamics"},
    "victim": {"victim", "dynamics"},
    "analysis": {"analysis", "dynamics"},
    "app": set(ROOMS),
}


def imported(path: Path) -> Iterator[str]:
    """The modules a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_entered(path: Path) -> set[str]:
    parts = (name.split(".") for name in imported(path))
    return {part[1] for part in parts if part[0] == "simudy" and len(part) > 1 and part[1] in ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_no_arrow_points_the_wrong_way(room):
    for path in (SOURCE / room).rglob("*.py"):
        wrong = rooms_entered(path) - MAY_IMPORT[room]
        assert not wrong, f"{path.relative_to(SOURCE)} imports {', '.join(sorted(wrong))}"


def test_the_walk_sees_imports():
    assert rooms_entered(SOURCE / "app" / "tasks" / "prepare.py") == {"app", "attack", "victim"}


ATTACK_PATH = (
    *(SOURCE / "attack").rglob("*.py"),
    *(SOURCE / "dynamics").rglob("*.py"),
    *(SOURCE / "app" / "settings").rglob("*.py"),
    SOURCE / "app" / "tasks" / "reconstruct.py",
    SOURCE / "app" / "tasks" / "plan.py",
    SOURCE / "app" / "tasks" / "watch.py",
)


@pytest.mark.parametrize("path", ATTACK_PATH, ids=lambda path: path.name)
def test_nothing_on_the_path_of_the_attack_takes_a_secret(path):
    assert not [name for name in imported(path) if name.startswith("simudy.app.store.secret")]
    assert "secret" not in [
        arg.arg for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.arguments)
        for arg in (*node.args, *node.kwonlyargs)
    ]  # fmt: skip


def test_module_names_are_unique_and_rooms_are_small():
    files = [path for path in SOURCE.rglob("*.py") if path.name != "__init__.py"]
    names = [path.stem for path in files]
    assert sorted(names) == sorted(set(names)), sorted(n for n in names if names.count(n) > 1)
    for folder in {path.parent for path in files} - {SOURCE / "dynamics" / "optim"}:
        assert len(list(folder.glob("*.py"))) <= 13, folder  # twelve, and its __init__
    for path in files:
        assert len(path.read_text().splitlines()) <= 350, path
