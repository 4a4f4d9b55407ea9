"""Every Python block of the pages runs, on its own, and says that it worked."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from simudy.attack.distance import DISTANCES

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])


def blocks() -> dict[str, str]:
    """The Python blocks by page and number."""
    found = {}
    for page in PAGES:
        texts = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for number, text in enumerate(texts, 1):
            found[f"{page.relative_to(ROOT)}, {number}"] = text
    return found


BLOCKS = blocks()


@pytest.mark.parametrize("name", BLOCKS)
def test_block_runs(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module = ModuleType("block")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "block", module)
    monkeypatch.delitem(DISTANCES, "robust", raising=False)  # one page adds it: undone afterwards
    exec(compile(BLOCKS[name], name, "exec", dont_inherit=True), module.__dict__)
    assert "assert " in BLOCKS[name] or "class " in BLOCKS[name]


def test_there_are_blocks_for_every_extension():
    covered = {name.split(",")[0] for name in BLOCKS}
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs/guides/extend").glob("*.md")}
    assert pages <= covered
