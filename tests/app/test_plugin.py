"""An optimizer of one's own, in a file outside of the package, as a new user adds it from
docs/guides/extend/optimizer.md.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from simudy.testing import check_optimizer

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "extend" / "optimizer.md"
TINY = (
    "data.n=4",
    "data.size=8",
    "model.width=16",
    "recipe.epochs=3",
    "outer.iterations=3",
    "hydra.run.dir=run",
)
OWN = (
    "dummy.images=pixels",
    "gradient=mixed",
)  # SignSGD acts entry by entry: no factored weights, no span


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Iterator[Path]:
    """A directory with the page's ``my_rules.py`` and its configuration, importable."""
    (tmp_path / "my_rules.py").write_text(next(b for b in blocks("python") if "class SignSGD" in b))
    (tmp_path / "mine" / "inner").mkdir(parents=True)
    (tmp_path / "mine" / "inner" / "sign_sgd.yaml").write_text(
        next(b for b in blocks("yaml") if "SignSGD" in b)
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_rules", None)


def simudy(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """The command, as a person types it in their directory."""
    command = [sys.executable, "-c", "from simudy.app.cli import main; main()", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=environment
    )


def test_the_rule_passes_the_whole_check(workplace):
    rule = importlib.import_module("my_rules").SignSGD
    check_optimizer(rule())
    check_optimizer(rule(lr=0.1, momentum=0.0))


def test_the_rule_runs_from_the_command_line(workplace):
    done = simudy(workplace, *TINY, *OWN, "inner._target_=my_rules.SignSGD", "inner.lr=0.001")
    assert done.returncode == 0, done.stderr
    assert json.loads((workplace / "run" / "result.json").read_text())["status"] == "finished"
    assert "my_rules.SignSGD" in (workplace / "run" / "config.yaml").read_text()


def test_a_wrong_type_ends_with_code_2_and_one_line(workplace):
    refused = simudy(workplace, *TINY, *OWN, "inner._target_=my_rules.SignSGD", "inner.lr=abc")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert refused.stderr.startswith("simudy: error: inner.lr=abc: give a number")
    assert refused.stderr.count("\n") == 1


def test_its_configuration_is_chosen_by_name(workplace, cli):
    outcome = cli(
        "--config-dir=mine", *TINY, *OWN, "inner=sign_sgd", "inner.momentum=0.8", tiny=False
    )
    assert outcome.code == 0, outcome.err
    assert "momentum: 0.8" in (workplace / "run" / "config.yaml").read_text()


def test_a_misspelt_field_and_a_gradient_it_cannot_have(workplace, cli):
    target = "inner._target_=my_rules.SignSGD"
    assert (
        "SignSGD takes no 'momentun': did you mean momentum?"
        in cli(*OWN, target, "+inner.momentun=0.5").error
    )
    assert (
        "cannot be factored: use gradient Mixed()" in cli(*OWN, target, "gradient=factored").error
    )
