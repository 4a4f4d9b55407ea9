"""The scripts and the notebook of examples/ run, are short, and use the public names alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(ROOT.glob("examples/*.py"))
NOTEBOOK = ROOT / "examples" / "step_by_step.ipynb"
NAMES = [script.name for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_script_runs(script, tmp_path):
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_script_is_short_and_imports_from_simudy_alone(script):
    text = script.read_text()
    assert len(text.splitlines()) < 60
    homes = re.findall(r"^from (simudy\S*) import", text, re.MULTILINE)
    assert homes[0] == "simudy" and set(homes[1:]) <= {"simudy.dynamics.optim"}
    assert "assert " in text and text.startswith('"""')


def test_the_page_shows_them_all():
    page = (ROOT / "docs" / "guides" / "examples.md").read_text()
    assert sorted(re.findall(r'"examples/(\w+\.py)"', page)) == sorted(NAMES)


def cells(kind: str) -> list[str]:
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, cell in enumerate(cells("code"), 1):
        exec(compile(cell, f"cell {number}", "exec", dont_inherit=True), names)
    assert names["judged"].ssim_paper > 0.9 > names["judged"].highest_floor
    assert (tmp_path / "gallery.png").exists()


def test_the_notebook_is_as_it_ran_last():
    """Every code cell has been executed in order, none ended with an error."""
    found = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in found if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert outputs and "error" not in outputs
