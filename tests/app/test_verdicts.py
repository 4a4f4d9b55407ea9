"""A verdict on each image: in the result, the gallery and after other searches have their say."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import result

from simudy.analysis.verdicts import (
    ALIKE,
    CERTIFIED,
    CONSISTENT,
    UNSUPPORTED,
    counts_of,
    likeness,
    verdicts_on,
)
from simudy.app.audit.verdict import _require_pictures
from simudy.app.tasks import finish
from simudy.errors import SimudyError

WIDE = ("data.n=4", "data.size=8", "recipe.epochs=3", "outer.iterations=60", "model.width=60")
LONG = "outer.iterations=200"  # until searches draw the same pictures


def test_proof_counts_before_agreement_and_agreement_before_nothing():
    found = verdicts_on(3, certified=[True, False, False], consistent=[True, True, False])
    assert found == [CERTIFIED, CONSISTENT, UNSUPPORTED]
    assert verdicts_on(1, certified=None, consistent=None) == [UNSUPPORTED]
    assert counts_of(found) == {CERTIFIED: 1, CONSISTENT: 1, UNSUPPORTED: 1}


def test_the_same_picture_in_all_searches_is_alike_and_its_blur_is_not():
    images = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    partners = torch.tensor([[2, 0, 1], [0, 1, 2]])
    shuffled = images[torch.tensor([1, 2, 0])]  # where its partners are
    assert likeness([images, shuffled, images + 0.01], partners).min() > 0.99
    assert likeness([images, shuffled, blurred], partners).max() < ALIKE


def test_images_decoded_off_their_units_are_certified(cli, tmp_path):
    outcome = cli(*WIDE, "outer.decode=true", "hydra.run.dir=a", tiny=False)
    assert outcome.code == 0, outcome.err
    found = result(tmp_path / "a")
    assert found["verdicts"] == [CERTIFIED] * 4 and max(found["certificates"]) < 0.01
    assert "4 certified" in outcome.out and found["ssim_paper"] > 0.99


@pytest.fixture
def searches(cli, monkeypatch):
    """``searches("a", "b")``: runs of these names against the first's evidence; no galleries."""
    monkeypatch.setattr(finish, "_draw", lambda *args: None)

    def run(*names, settings=WIDE):
        assert cli(*settings, f"hydra.run.dir={names[0]}", tiny=False).code == 0
        for seed, name in enumerate(names[1:], start=1):
            again = (
                f"evidence.folder={names[0]}/evidence",
                f"seed={seed}",
                f"hydra.run.dir={name}",
            )
            assert cli(*settings, *again, tiny=False).code == 0

    return run


VERDICT = ("task=verdict", "hydra.run.dir=a", "verdict.false_rate=0.1")


def test_independent_searches_confirm_images(cli, searches, tmp_path):
    searches("a", "b", "c", settings=(*WIDE, LONG))
    before = result(tmp_path / "a")
    assert before["verdicts"] == [UNSUPPORTED] * 4
    outcome = cli(*VERDICT, "verdict.runs=[b,c]", tiny=False)
    assert outcome.code == 0, outcome.err
    found, agreed = result(tmp_path / "a"), json.loads((tmp_path / "a/agreement.json").read_text())
    assert agreed["searches"] == ["b", "c"] and agreed["unrelated"] == 12
    expected = [CONSISTENT if one else UNSUPPORTED for one in agreed["consistent"]]
    both = zip(agreed["p_values"], agreed["ssim"], strict=True)
    assert agreed["consistent"] == [p <= 0.1 and alike >= ALIKE for p, alike in both]
    assert found["verdicts"] == expected and CONSISTENT in expected
    assert {k: v for k, v in found.items() if "verdict" not in k} == {
        k: v for k, v in before.items() if "verdict" not in k
    }
    assert cli("task=score", "hydra.run.dir=a", tiny=False).code == 0
    assert result(tmp_path / "a") == found

    other = (tmp_path / "b/reconstruction.safetensors").read_bytes()
    (tmp_path / "a/reconstruction.safetensors").write_bytes(other)
    assert cli("task=score", "hydra.run.dir=a", tiny=False).code == 0
    assert result(tmp_path / "a")["verdicts"] == [UNSUPPORTED] * 4  # it was about other images

    (tmp_path / "a/agreement.json").write_text('{"images": 3}')
    assert "run task=verdict again" in cli("task=score", "hydra.run.dir=a", tiny=False).error


def test_searches_that_are_not_independent_are_refused(cli, searches, tmp_path):
    searches("a", "b")
    assert "set verdict.runs" in cli(*VERDICT, tiny=False).error
    assert "no reconstruction.safetensors" in cli(*VERDICT, "verdict.runs=[x]", tiny=False).error
    ours = "evidence.folder=a/evidence"
    for told, reason in (
        ((ours, "dummy.start=b", "seed=7"), "began at images (dummy.start)"),
        (("seed=3",), "against other weights"),
        ((ours,), "give runs of different seed"),
    ):
        assert cli(*WIDE, *told, "hydra.run.dir=c", tiny=False).code == 0
        assert reason in cli(*VERDICT, "verdict.runs=[c]", tiny=False).error
        shutil.rmtree(tmp_path / "c")
    short = ("outer.iterations=1", "outer.refine=0", "seed=1", "hydra.run.dir=c")
    assert cli(*WIDE, ours, *short, tiny=False).code == 0
    assert "give it more outer.iterations" in cli(*VERDICT, "verdict.runs=[c]", tiny=False).error
    assert not (tmp_path / "a/agreement.json").exists()


def test_images_without_a_window_are_refused():
    with pytest.raises(SimudyError, match=r"pictures of 7×7 or more.*\(1, 4, 9\)"):
        _require_pictures(torch.zeros(3, 1, 4, 9))
