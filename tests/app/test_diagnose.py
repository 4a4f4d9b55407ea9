"""A page on a search that found nothing: every line has its number, with a secret or without."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import train_victim

from simudy import SGD, Recipe
from simudy.app.audit.diagnose import NOT_SHOWN
from simudy.app.audit.measures import Present, blank, fitted, off, precise, ranked, sensitive
from simudy.app.tasks import finish
from simudy.victim.models import MLP

KEYS = (
    *("floor", "fit", "blank", "m_lin", "sensitivity", "rank"),
    *("off_units", "precision", "recipe", "compute"),
)


@pytest.fixture
def run(cli, monkeypatch, tmp_path):
    """``run(…)``: a diagnosis of a tiny run with these settings, as it is on disk."""
    monkeypatch.setattr(finish, "_draw", lambda *args: None)

    def call(*settings, audit=False):
        assert cli(*settings, "hydra.run.dir=a").code == 0
        if audit:
            shutil.rmtree(tmp_path / "a/secret")
            assert cli("task=score", "hydra.run.dir=a", tiny=False).code == 0
        outcome = cli("task=diagnose", "hydra.run.dir=a", tiny=False)
        assert outcome.code == 0, outcome.err
        found = json.loads((tmp_path / "a/diagnosis.json").read_text())
        text = (tmp_path / "a/diagnosis.txt").read_text()
        assert all(line["figure"] in text and line["meaning"] in text for line in found["lines"])
        assert NOT_SHOWN in text and NOT_SHOWN in outcome.out
        return {line["key"]: line for line in found["lines"]}, found["changes"]

    return call


def test_every_line_has_its_number(run):
    lines, changes = run()
    assert tuple(lines) == KEYS
    assert 0 < lines["m_lin"]["value"] <= 1 and lines["fit"]["value"] > 0.01
    assert (
        "weight 4 of 16" in lines["rank"]["figure"] and "trained here" in lines["recipe"]["figure"]
    )
    assert any("outer.iterations=8" in change for change in changes)


def test_an_auditor_has_no_secret(run):
    lines, _ = run(audit=True)
    assert lines["floor"]["figure"] == "not known" and lines["fit"]["value"] is not None


def test_a_guess_and_what_cannot_be_measured_are_told(run):
    guess = ("attack.recipe.epochs=1", "model.activation=tanh")
    lines, changes = run(*guess)
    assert changes[0] == "Simulate all epochs: 1 of 3 are (attack.recipe.epochs)."
    assert lines["recipe"]["value"] == 1 and "attack.recipe.epochs=1" in lines["recipe"]["meaning"]
    assert (
        lines["off_units"]["figure"] == "not measured"
        and "no ReLU" in lines["off_units"]["meaning"]
    )
    assert "give 2 or more" in lines["m_lin"]["meaning"]


def test_a_guess_is_doubted_before_more_of_the_same_is_asked_for(run):
    lines, changes = run("attack.inner.lr=0.5", "outer.iterations=2")
    assert changes[0].startswith("Check the recipe: attack.inner.lr.")
    assert "departed from" in lines["recipe"]["figure"]


def test_weights_that_decay_moved_are_told_from_weights_that_images_moved():
    now = victim()
    assert (blank(now).value or 0.0) > 0.01 and "apart" in blank(now).meaning
    images, labels = now.images, now.labels
    recipe = Recipe(SGD(lr=1e-3, weight_decay=50.0), epochs=4)
    module = MLP((3, 8, 8), 2, width=40).double()
    evidence = train_victim(module, recipe, images, labels, classes=2)
    line = blank(Present(evidence, recipe, images, labels))
    assert (line.value or 1.0) < 0.01 and "weight decay" in line.meaning


def victim(dtype=torch.float64):
    torch.manual_seed(0)
    images, labels = torch.rand(5, 3, 8, 8, dtype=dtype), torch.arange(5) % 2
    module = MLP((3, 8, 8), 2, width=40).to(dtype)
    recipe = Recipe(SGD(lr=0.05), epochs=4)
    evidence = train_victim(module, recipe, images, labels, classes=2)
    return Present(evidence, recipe, images, labels)


def test_at_the_truth_the_figures_are_what_they_must_be():
    now = victim()
    assert abs(fitted(now).value or 0.0) < 1e-12
    assert "weight 5 of 40" in ranked(now.evidence).figure
    assert "can be decoded exactly" in off(now).meaning
    assert (sensitive(now).value or 1.0) < 0.05


def test_sensitivity_is_the_share_that_the_end_moves_by():
    now = victim()
    noise = 1e-3 * torch.randn(now.images.shape, generator=torch.Generator().manual_seed(0))
    ends = [now.displacement(x) for x in (now.images, now.images + noise.double())]
    flat = [torch.cat([w.flatten() for w in end.values()]) for end in ends]
    expected = float((flat[1] - flat[0]).norm() / flat[0].norm())
    assert sensitive(now).value == pytest.approx(expected, rel=1e-9)


def test_rounding_is_told_as_a_share_of_the_displacement():
    evidence = victim(torch.float32).evidence
    evidence.precision = "bfloat16"
    ends = [evidence.initial, evidence.final]
    errors = [w.bfloat16().float() - w for end in ends for w in end.values()]
    moved = torch.cat([w.flatten() for w in evidence.displacement.values()]).norm()
    expected = float(torch.cat([e.flatten() for e in errors]).norm() / moved)
    assert precise(evidence).value == pytest.approx(expected, rel=0.1)


def test_noise_is_told_as_a_share_of_the_displacement():
    evidence = victim().evidence
    std = 0.3 * float(evidence.displacement["layers.1.weight"].norm())
    evidence.hidden = {"layers.1.weight": std / evidence.final["layers.1.weight"].numel() ** 0.5}
    moved = torch.cat([w.flatten() for w in evidence.displacement.values()]).norm()
    line = precise(evidence)
    assert line.value == pytest.approx(float(std / moved), rel=1e-3)
    assert "noise" in line.figure and line.meaning.startswith("Noise hides much")
