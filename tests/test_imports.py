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
