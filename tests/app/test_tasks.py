"""Tasks beside the attack: linearity, and the number of images."""

from __future__ import annotations

import json
import shutil

from conftest import result


def test_linearity_of_a_sweep_of_widths(cli, tmp_path):
    sweep = ("-m", "task=linearity", "model.width=16,64", "hydra.sweep.dir=s")
    outcome = cli(*sweep)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("M_lin 0.") == 2
    found = [result(path.parent) for path in tmp_path.glob("s/*/result.json")]
    assert [{"status", "m_lin", "n", "epochs", "config_hash"} <= {*one} for one in found] == [
        True,
        True,
    ]
    assert all(
        one["n"] == 4 and one["epochs"] == 3 and len(one["m_lin_per_sample"]) == 4 for one in found
    )
    again = cli(*sweep)
    assert again.code == 0 and sorted(r["seconds"] for r in found) == sorted(
        result(path.parent)["seconds"] for path in tmp_path.glob("s/*/result.json")
    )


def test_linearity_needs_images_and_epochs(cli):
    assert "give 2 or more" in cli("task=linearity", "recipe.epochs=1").error
    assert "leave evidence out" in cli("task=linearity", "evidence.folder=x").error


def test_size_by_the_rank_alone(cli, tmp_path):
    outcome = cli("task=size", "hydra.run.dir=a")
    assert outcome.code == 0 and "displacement: 4" in outcome.out
    assert result(tmp_path / "a")["rank"] == 4
    adam = cli("task=size", "inner=adam", "dummy.images=pixels", "hydra.run.dir=b")
    assert adam.code == 0 and "no rank" in adam.out and result(tmp_path / "b")["rank"] is None


def test_size_ranks_the_surplus_dummies_of_a_run(cli, tmp_path):
    options = ("attack.n=6", "dummy.images=pixels", "dummy.labels=learned", "dummy.learn=[lr]")
    assert cli(*options, "hydra.run.dir=a").code == 0
    before = (tmp_path / "a/result.json").read_text()
    outcome = cli("task=size", "hydra.run.dir=a", tiny=False)
    assert outcome.code == 0, outcome.err
    dummies = json.loads((tmp_path / "a/size.json").read_text())["dummies"]
    assert (
        len(dummies["contributions"]) == 6
        and dummies["matched"]["count"] + dummies["unmatched"]["count"] == 6
    )
    assert {"ssim_paper_of_all", "ssim_paper_of_top"} <= {*dummies}
    assert (tmp_path / "a/result.json").read_text() == before


def test_size_does_without_what_the_run_began_at(cli, tmp_path):
    assert cli("hydra.run.dir=a", "dummy.images=pixels").code == 0
    assert cli("hydra.run.dir=b", "dummy.images=pixels", "dummy.start=a").code == 0
    shutil.rmtree(tmp_path / "a")
    outcome = cli("task=size", "hydra.run.dir=b", tiny=False)
    assert outcome.code == 0, outcome.err
    assert len(json.loads((tmp_path / "b/size.json").read_text())["dummies"]["contributions"]) == 4


def test_size_needs_a_simulated_run(cli):
    assert cli("attack=one_step", "hydra.run.dir=a").code == 0
    assert "run attack=simudy there" in cli("task=size", "hydra.run.dir=a", tiny=False).error
