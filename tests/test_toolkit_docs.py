"""Every Python block of docs/toolkit.md runs, on its own, and says that it worked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parent.parent / "docs" / "toolkit.md").read_text()


def blocks() -> dict[str, str]:
    """The Python blocks under each heading."""
    found: dict[str, str] = {}
    heading = ""
    for title, block in re.findall(r"^#+ (.*)|^```python\n((?:.*\n)*?)```", PAGE, re.MULTILINE):
        heading = title or heading
        if block:
            found[heading if heading not in found else f"{heading}, {len(found)}"] = block
    return found


BLOCKS = blocks()
EXAMPLES = [
    "Learn a learning rate",
    "Distil a data set",
    "Poison",
    "Adapt fast (MAML)",
    "Reconstruct",
]


@pytest.mark.parametrize("title", BLOCKS)
def test_block_runs(title, capsys):
    with torch.random.fork_rng(devices=[]):
        code = compile(BLOCKS[title], f"docs/toolkit.md: {title}", "exec", dont_inherit=True)
        exec(code, {"__name__": "block"})
    assert "assert " in BLOCKS[title] or "class " in BLOCKS[title]


def test_the_five_examples_are_short_and_use_the_public_names_alone():
    for title in EXAMPLES:
        block = BLOCKS[title]
        assert len(block.splitlines()) <= 33
        assert "print(" in block and "assert " in block
        imported = re.findall(r"^from (simudy\S*) import", block, re.MULTILINE)
        assert imported == ["simudy"]
