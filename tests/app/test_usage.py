"""What the command says of itself: ``--help``, ``--version``, ``python -m simudy``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from simudy.app.settings import meaning
from simudy.app.usage import COLUMNS, meanings, usage


def test_every_key_has_a_sentence_within_the_columns():
    page = usage([])
    settings = page.partition("== Settings (key=value) ==")[2]
    lines = settings.splitlines()
    keys = [line.split("=")[0] for line in lines if "=" in line.split(" ")[0]]
    assert len(keys) > 60 and {"recipe.epochs", "evidence.shape", "model.width"} <= set(keys)
    assert max(map(len, page.splitlines())) <= COLUMNS
    for i, line in enumerate(lines):
        if line and not line.startswith(" ") and "=" in line.split(" ")[0]:
            assert len(line.split()) > 1 or lines[i + 1].startswith("   "), line


def test_the_keys_are_those_of_the_options_that_were_chosen():
    page = usage(["inner=adam", "inner.lr=0.5", "-m"])
    assert "inner.lr=0.5 " in page and "inner.beta1=null" in page and "momentum=0" not in page


def test_an_option_that_is_not_there(cli):
    assert "inner/adan" in cli("--help", "inner=adan").error


def test_options_of_ones_own_are_shown(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: my.Net\nhidden: 7\n")
    page = usage(["--config-dir", str(tmp_path), "model=mine"])
    assert "model.hidden=7" in page and "model.width" not in page


def test_comments_stand_above_or_behind_a_key(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("# The file.\n\n# above\n# it\na: 1 # behind\nb:\n  # of c\n  c: 2\nd: 3\n")
    assert meaning.comments(path) == {"a": "above it behind", "b.c": "of c"}
    assert meaning.head(path) == "The file."


def test_a_docstring_is_read_without_importing():
    said = meaning.documented("simudy.attack.methods.kkt.KKT")
    assert said["min_weight"] and said["euclidean_until"]  # its own, and of what it derives from
    assert meaning.documented("torch.optim.SGD") == {} == meaning.documented("simudy.no.Such")


def test_the_site_and_the_help_say_the_same():
    pytest.importorskip("mkdocs", reason="the site's tools are an extra: pip install simudy[docs]")
    sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "hooks"))
    try:
        import keys  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    page = {key.name: key for key in keys.general()}
    values = dict.fromkeys(name for name, key in page.items() if "." in name)
    for name, sentence in meanings(values, {"outer": "adam", "victim": "scratch"}).items():
        assert sentence == page[name].meaning, name


@pytest.mark.parametrize(
    "command", [["-m", "simudy"], ["-c", "import simudy.app.entry as e; e.simudy()"]]
)
def test_the_version(command):
    shown = subprocess.run([sys.executable, *command, "--version"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("simudy 0.") and "torch 2." in shown.stdout
    assert shown.stdout.count("\n") == 1
