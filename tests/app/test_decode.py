"""Decoding off units at the end of a run."""

from __future__ import annotations

from conftest import result


def test_a_run_ends_with_certified_images(cli, tmp_path):
    wide = ("model.width=100", "outer.iterations=40", "outer.decode=true", "hydra.run.dir=a")
    outcome = cli(*wide)
    assert outcome.code == 0 and "off units certify 4 of 4 images" in outcome.out
    found = result(tmp_path / "a")
    assert found["certified"] == 4 and max(found["certificates"]) < 0.01
    assert found["ssim_paper"] > 0.999


def test_where_there_are_no_off_units_a_run_says_so(cli, tmp_path):
    outcome = cli("model.activation=tanh", "outer.decode=true", "hydra.run.dir=a")
    assert outcome.code == 0 and "no ReLU" in outcome.out + outcome.err
    assert result(tmp_path / "a")["certified"] is None
