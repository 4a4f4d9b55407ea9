"""Every tick of the table beside the peers is a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "toolkit.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]


def test_every_tick_names_a_test():
    assert len(ROWS) > 20
    for row in ROWS:
        what, ours, *_, test = (cell.strip() for cell in row.strip("|").split("|"))
        assert ours == "✓", what
        ((path, name),) = re.findall(r"^`(tests/\S+\.py)::(test_\w+)`$", test)
        nodes = ast.walk(ast.parse((ROOT / path).read_text()))
        assert name in {n.name for n in nodes if isinstance(n, ast.FunctionDef)}, what
