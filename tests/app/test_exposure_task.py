"""``task=exposure`` on the command line: figures, plot, going on, and what it needs."""

from __future__ import annotations

import json

import pytest
from conftest import result

from simudy.app.tasks import measure_exposure

SHORT = ("task=exposure", "exposure.starts=2", "exposure.steps=3", "hydra.run.dir=run")


def written(tmp_path):
    return json.loads((tmp_path / "run/exposure.json").read_text())


def test_every_image_is_ranked_and_what_is_assumed_is_said(cli, tmp_path):
    outcome = cli(*SHORT)
    assert outcome.code == 0, outcome.err
    found, said = written(tmp_path), outcome.out + outcome.err
    bounds = [row["psnr_bound"] for row in found["images"]]
    assert bounds == sorted(bounds, reverse=True)
    assert sorted(row["image"] for row in found["images"]) == [0, 1, 2, 3]
    assert min(bounds) > found["psnr_floor"] == pytest.approx(12.04, abs=0.01)
    assert all(line in said for line in found["assumptions"])
    assert found["precision"] == "float32"
    assert (tmp_path / "run/exposure.png").read_bytes().startswith(b"\x89PNG")
    assert result(tmp_path / "run")["psnr_bound"] == pytest.approx(sum(bounds) / 4)


def test_noise_lowers_the_bound_until_nothing_is_said(cli, tmp_path):
    assert cli(*SHORT).code == 0
    before = result(tmp_path / "run")["psnr_bound"]
    some, much = ((*SHORT[:-1], f"exposure.noise={s}", f"hydra.run.dir=n{s}") for s in (1e-4, 1e3))
    assert cli(*some).code == 0
    assert result(tmp_path / "n0.0001")["psnr_bound"] < before - 20
    outcome = cli(*much)
    assert (outcome.out + outcome.err).count("the weights say nothing") == 4


def test_it_goes_on_where_it_was_stopped(cli, tmp_path, monkeypatch):
    whole = cli(*SHORT)
    assert whole.code == 0
    everything = written(tmp_path)
    path = tmp_path / "run/exposure.json"
    path.write_text(json.dumps({**everything, "images": everything["images"][:3]}))
    measured = []
    real = measure_exposure.exposure

    def counted(run, index, **options):
        measured.append(index)
        return real(run, index, **options)

    monkeypatch.setattr(measure_exposure, "exposure", counted)
    assert cli(*SHORT).code == 0
    assert measured == [everything["images"][3]["image"]]
    assert written(tmp_path)["images"] == everything["images"]


def test_files_without_their_images_are_one_line(cli, tmp_path):
    assert cli("task=victim", "hydra.run.dir=owner").code == 0
    weights = tmp_path / "owner/evidence"
    files = [f"evidence.{p}={weights}/{p}.safetensors" for p in ("initial", "final")]
    facts = ("evidence.shape=[1,8,8]", "evidence.classes=2", "evidence.n=4", "model.width=16")
    error = cli(*SHORT, *files, *facts, "recipe.epochs=3", tiny=False).error
    assert "needs the images that the weights were trained on" in error


def test_a_damaged_file_is_one_line(cli, tmp_path):
    assert cli(*SHORT).code == 0
    (tmp_path / "run/exposure.json").write_text("{")
    assert "measure again" in cli(*SHORT).error


def test_beside_an_earlier_run_it_stands_in_its_report_and_changes_nothing_else(cli, tmp_path):
    run = ("hydra.run.dir=run", "data.heldout=60")
    assert cli(*run).code == 0
    kept = {name: (tmp_path / "run" / name).read_bytes() for name in ("result.json", "config.yaml")}
    assert "exposure" in (page := (tmp_path / "run/report.html").read_text())
    assert "task=exposure" in page and "task=membership" in page  # as not asked yet
    for task in ("task=exposure", "task=membership"):
        options = [one for one in SHORT[1:3] if task == "task=exposure"]
        outcome = cli(task, "hydra.run.dir=run", *options, tiny=False)
        assert outcome.code == 0, outcome.err
    assert kept == {name: (tmp_path / "run" / name).read_bytes() for name in kept}
    tiles = {
        t["name"]: t for t in json.loads((tmp_path / "run/report.json").read_text())["figures"]
    }
    best = written(tmp_path)["images"][0]
    assert tiles["exposure"]["value"] == "4 of 4"
    assert f"PSNR ≤ {best['psnr_bound']:.0f} dB" in tiles["exposure"]["note"]
    found = json.loads((tmp_path / "run/membership.json").read_text())
    assert tiles["membership"]["value"] == f"{found['below_1_percent']} of 34"
    assert tiles["exposure"]["note"] in (tmp_path / "run/report.html").read_text()
    again = cli(*run)  # the run is still the same run
    assert again.code == 0 and "nothing to do" in again.out
