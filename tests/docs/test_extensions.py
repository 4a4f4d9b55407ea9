"""What the pages on extending say to type works, with the files that they say to write."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "guides" / "extend"
QUICK = ("recipe.epochs=2", "outer.iterations=2", "hydra.run.dir=run")


@pytest.mark.parametrize("name", ["model", "data", "method"])
def test_the_command_of_the_page_runs(name, cli, tmp_path, monkeypatch):
    page = (PAGES / f"{name}.md").read_text()
    file, text = re.findall(r"^```python\n# (my_\w+)\.py\n(.*?)^```", page, re.M | re.S)[0]
    (tmp_path / f"{file}.py").write_text(text)
    monkeypatch.delitem(sys.modules, file, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    command = next(line for line in page.splitlines() if line.startswith("    simudy "))
    outcome = cli(*shlex.split(command)[1:], *QUICK, tiny=False)
    assert outcome.code == 0, outcome.err
    assert file in (tmp_path / "run" / "config.yaml").read_text()
    sys.modules.pop(file, None)
