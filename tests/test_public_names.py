"""The face of the package: what it exports, what a type checker sees, and what it does without."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import simudy

FACE = Path(simudy.__file__)
HEAVY = ("hydra", "omegaconf", "matplotlib", "skimage", "torchopt", "higher")


def test_a_type_checker_is_told_the_same_names():
    told = next(node for node in ast.parse(FACE.read_text()).body if isinstance(node, ast.If))
    imported = {
        alias.asname: node.module
        for node in told.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == simudy._HOME


def test_a_type_checker_sees_every_public_name(tmp_path):
    """As an editor would: through the installed package, with its types, and no name made up."""
    asked = [f"reveal_type(simudy.{name})" for name in (*simudy.__all__, "__version__")]
    page = tmp_path / "page.py"
    page.write_text("\n".join(["import simudy", *asked, "simudy.no_such_name"]) + "\n")
    command = [sys.executable, "-m", "pyright", "--outputjson", "-p", str(tmp_path)]
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps({"include": ["page.py"], "extraPaths": [str(FACE.parents[1])]})
    )
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    said = json.loads(found.stdout)["generalDiagnostics"]
    types = [d["message"] for d in said if d["severity"] == "information"]
    assert len(types) == len(asked)
    assert not [line for line in types if line.endswith(('is "Any"', 'is "Unknown"'))]
    (error,) = (d["message"] for d in said if d["severity"] == "error")
    assert "no_such_name" in error


def test_the_library_needs_torch_alone():
    """No command line, no plots, no other library of optimizers: all that is theirs is blocked."""
    script = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None
import torch, simudy
assert simudy.__version__
for name in simudy.__all__:
    if name not in ("save_gallery",):
        getattr(simudy, name)
loss = lambda params, batch: (params["w"] - batch[0]).square().sum()
end = simudy.simulate(loss, {{"w": torch.ones(1)}}, [(torch.zeros(1),)], simudy.SGD(lr=0.1))
assert abs(float(end["w"]) - 0.8) < 1e-6
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
