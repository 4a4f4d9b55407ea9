"""Twelve foreign training scripts (``examples/audits``): each is understood to the last bit.

Evidence is made by the command as a person would type it; the run it describes, simulated on the
true images, lands on the weights that plain torch published.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import result
from safetensors.torch import load_file

from simudy import Evidence, simulate
from simudy.app.tasks import finish
from simudy.attack.checkpoints.findings import spacing

EXAMPLES = Path(__file__).parents[2] / "examples" / "audits"
sys.path.insert(0, str(EXAMPLES))
import foreign  # noqa: E402


@pytest.mark.parametrize("name", foreign.SITUATIONS)
def test_the_true_images_land_on_the_published_weights(cli, tmp_path, name):
    words = foreign.audit(name, tmp_path / "files")
    outcome = cli(*words, "outer.iterations=2", "hydra.run.dir=run", tiny=False)
    assert outcome.code == 0, outcome.err
    assert result(tmp_path / "run")["status"] == "finished"
    outputs = {"outputs": 1} if "+model.outputs=1" in words else {}
    norm = {"norm": True} if name == "batchnorm" else {}
    kind = foreign.Cnn if "model._target_=foreign.Cnn" in words else foreign.Mlp
    evidence = Evidence.load(tmp_path / "run/evidence", kind(**outputs, **norm))
    images, labels = foreign.images()
    if name == "regression":
        labels = foreign.targets()[:, None]
    recipe = evidence.recipe
    with torch.no_grad():
        batches, rules = recipe.collate(images, labels), recipe.rules(len(images))
        end = simulate(evidence.model.loss, evidence.initial, batches, rules)
    for key, published in evidence.final.items():
        off = (end[key] - published).abs()
        rounding = spacing(published, torch.bfloat16).max() if evidence.precision else 0.0
        assert bool((off <= 1e-5 + 2 * rounding).all()), (key, float(off.max()))
    moved = max(float((evidence.final[k] - evidence.initial[k]).abs().max()) for k in end)
    assert moved > 1e-3


def printed(name: str, folder: Path) -> list[str]:
    """The command that the script prints, without its first word."""
    script = [sys.executable, str(EXAMPLES / "foreign.py"), name]
    shown = subprocess.run(script, cwd=folder, capture_output=True, text=True, check=True).stdout
    first, *words = shlex.split(shown)
    assert first == "simudy"
    return words


def judge(cli, folder: Path, words: list[str]) -> None:
    """The command judges itself, against the pictures it names."""
    outcome = cli(*words, "hydra.run.dir=run", tiny=False)
    assert outcome.code == 0, outcome.err
    found = result(folder / "run")
    assert found["floor"]["heldout"] is not None
    assert found["ssim_paper"] >= 2 * max(found["floor"].values()) or found["limits"]
    assert set(found["images"]) == {f"truth.npz[{i}]" for i in range(foreign.N)}


@pytest.mark.parametrize("name", ["ema", "binary"])
def test_the_printed_command_judges_itself(cli, tmp_path, monkeypatch, name):
    monkeypatch.setattr(finish, "_draw", lambda *args: args[-1].gallery.write_bytes(b""))
    judge(cli, tmp_path, [*printed(name, tmp_path), "outer.iterations=60"])


@pytest.mark.slow
@pytest.mark.parametrize("name", foreign.SITUATIONS)
def test_every_printed_command_as_it_is(cli, tmp_path, name):
    judge(cli, tmp_path, printed(name, tmp_path))


def test_real_targets_are_learned_or_given(cli, tmp_path):
    words = foreign.audit("regression", tmp_path / "files")
    short = ("outer.iterations=2", "hydra.run.dir=run")
    error = cli(*words, "dummy.labels=balanced", *short, tiny=False).error
    assert "real targets: set dummy.labels=learned" in error
    given = "dummy.labels=[-1.5,0.5,1,0,0,0,0,0]"
    outcome = cli(*words, given, "outer.lrs={labels: 1e-9}", *short, tiny=False)
    assert outcome.code == 0, outcome.err
    labels = load_file(tmp_path / "run/reconstruction.safetensors")["labels"]
    assert labels[:3, 0].tolist() == pytest.approx([-1.5, 0.5, 1.0])


def test_what_is_typed_must_be_what_the_files_hold(cli, tmp_path):
    words = foreign.audit("adamw", tmp_path / "files")
    for typed, said in (
        ("inner.lr=0.5", "has lr=0.01, the recipe 0.5"),
        ("inner=sgd", "holds the state of AdamW, the recipe says SGD"),
        ("recipe.epochs=3", "took 6 batches between the files, the recipe has 3"),
    ):
        outcome = cli(*words, typed, "dry_run=true", tiny=False)
        assert outcome.code == 2 and said in outcome.error, outcome.err


def test_a_result_says_what_limits_any_attack(cli, tmp_path):
    words = foreign.audit("frozen", tmp_path / "files")
    outcome = cli(*words, "outer.iterations=2", "hydra.run.dir=run", tiny=False)
    assert outcome.code == 0, outcome.err
    (reason,) = result(tmp_path / "run")["limits"]
    assert "1,027 independent numbers and 8 images have 2,048 pixels" in reason
    assert reason in (tmp_path / "run/report.html").read_text()


def test_what_is_no_picture_is_refused_before_the_search(cli, tmp_path):
    words = foreign.audit("lightning", tmp_path / "files")
    table = [w.replace("[1,16,16]", "[30]") for w in words]
    assert (
        "rows of a table and volumes are reconstructed from Python" in cli(*table, tiny=False).error
    )
