"""``task=membership`` from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import result
from safetensors.torch import load_file

ASK = ("task=membership", "data.heldout=60", "hydra.run.dir=a")


def found(folder: Path) -> dict:
    return json.loads((folder / "membership.json").read_text())


def npz(path: Path, count: int, *, seed: int, side: int = 8) -> str:
    rng = np.random.default_rng(seed)
    pixels = rng.random((count, side, side), np.float32)
    np.savez(path, images=pixels, labels=np.arange(count) % 2)
    return str(path)


def test_its_own_victim(cli, tmp_path):
    outcome = cli(*ASK)
    assert outcome.code == 0, outcome.err
    assert "AUC 1.0000" in outcome.out and "KS 0." in outcome.out
    said = found(tmp_path / "a")
    assert (said["auc"], said["tpr_at_1_percent"], said["power"]) == (1.0, 1.0, "full")
    assert (said["reference"], said["fitted_on"], said["least_p"]) == (20, 10, 1 / 21)
    assert [row["member"] for row in said["candidates"]] == [True] * 4 + [False] * 30
    assert all(row["p"] == 1 / 21 for row in said["candidates"][:4])
    assert (tmp_path / "a/membership.png").read_bytes()[:4] == b"\x89PNG"
    with (tmp_path / "a/membership.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 34 and float(rows[0]["score"]) == said["candidates"][0]["score"]
    assert result(tmp_path / "a")["auc"] == 1.0 and "candidates" not in result(tmp_path / "a")


def test_beside_an_earlier_run_it_changes_nothing_there(cli, tmp_path):
    assert cli("hydra.run.dir=a", "data.heldout=60").code == 0
    before = {name: (tmp_path / "a" / name).read_bytes() for name in ("result.json", "config.yaml")}
    outcome = cli("task=membership", "hydra.run.dir=a", tiny=False)
    assert outcome.code == 0, outcome.err
    assert found(tmp_path / "a")["auc"] == 1.0
    assert before == {name: (tmp_path / "a" / name).read_bytes() for name in before}
    again = cli("hydra.run.dir=a", "data.heldout=60")  # the run is still the same run
    assert again.code == 0 and "nothing to do" in again.out


def test_a_strangers_candidates(cli, tmp_path):
    assert cli("task=victim", "hydra.run.dir=a").code == 0
    asked = npz(tmp_path / "asked.npz", 5, seed=0)
    known = npz(tmp_path / "known.npz", 30, seed=1)
    images = (f"membership.candidates={asked}", f"membership.reference={known}")
    evidence = ("evidence.folder=a/evidence", "hydra.run.dir=b")
    outcome = cli("task=membership", *evidence, *images)
    assert outcome.code == 0, outcome.err
    said = found(tmp_path / "b")
    assert said["uniform"] is None and said["compared"] == "candidates with reference"
    assert [row["member"] for row in said["candidates"]] == [None] * 5
    assert min(row["p"] for row in said["candidates"]) > 1 / 21  # noise was not trained on


def test_pictures_of_a_folder_and_a_node(cli, tmp_path):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).save(
            tmp_path / f"pictures/{i}.png"
        )
    source = "{_target_: simudy.victim.data.Faces, n: 4, size: 8, heldout: 40}"
    asked = ("membership.candidates=pictures", f"membership.reference={source}")
    assert "set membership.size" in cli(*ASK, *asked).error
    outcome = cli(*ASK[:-1], "hydra.run.dir=c", *asked, "membership.size=8")
    assert outcome.code == 0, outcome.err
    assert [r["name"] for r in found(tmp_path / "c")["candidates"]] == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (("membership.candidates=nowhere",), "set membership.candidates to a folder or .npz"),
        (("membership.candidates=7",), "give a word or a mapping or null"),
        (("data.heldout=4",), "give 6 or more"),
        (("membership.candidates={n: 4}",), "set membership.candidates._target_"),
    ],
)
def test_bad_input_is_one_line(cli, options, remedy):
    assert remedy in cli(*ASK, *options).error


def test_files_without_images_beside_them(cli, tmp_path):
    assert cli("task=victim", "hydra.run.dir=a").code == 0
    (tmp_path / "a/secret").rename(tmp_path / "aside")
    evidence = ("task=membership", "evidence.folder=a/evidence", "hydra.run.dir=b")
    assert "membership.candidates is not set" in cli(*evidence).error
    asked = npz(tmp_path / "asked.npz", 8, seed=0)
    candidates = f"membership.candidates={asked}"
    assert "membership.reference is not set" in cli(*evidence, candidates).error
    both = (candidates, f"membership.reference={asked}")
    assert "8 candidates (0, …) are reference images too" in cli(*evidence, *both).error


def test_no_power_is_said(cli, tmp_path):
    outcome = cli(*ASK, "model.width=2", "model.depth=1", "data.n=8", "data.size=7")
    assert outcome.code == 0, outcome.err
    said = found(tmp_path / "a")
    assert said["power"] in ("partial", "weak") and said["layer"]["rank"] <= 2


def test_the_loss_stands_beside_where_labels_are_known(cli, tmp_path):
    assert cli(*ASK).code == 0
    said = found(tmp_path / "a")
    assert 0 <= said["loss"]["auc"] <= 1 and said["loss"]["members"] == 4
    assert all(1 / 21 <= row["p_by_loss"] <= 1 for row in said["candidates"])


def test_an_archive_may_tell_who_the_members_are(cli, tmp_path):
    assert cli("task=victim", "data.heldout=60", "hydra.run.dir=a").code == 0
    kept = load_file(tmp_path / "a/secret/images.safetensors")
    pixels = torch.cat([kept["victim_images"], kept["heldout_images"][:30]]).numpy()
    members = np.arange(len(pixels)) < 4
    np.savez(tmp_path / "asked.npz", images=pixels, members=members)
    np.savez(tmp_path / "known.npz", images=kept["heldout_images"][30:].numpy())
    images = ("membership.candidates=asked.npz", "membership.reference=known.npz")
    outcome = cli("task=membership", "evidence.folder=a/evidence", "hydra.run.dir=b", *images)
    assert outcome.code == 0, outcome.err
    said = found(tmp_path / "b")
    assert (said["auc"], said["loss"]) == (1.0, None)
    assert said["compared"] == "members with held-out candidates"


@pytest.mark.parametrize(
    ("arrays", "remedy"),
    [
        ({"labels": np.arange(5)}, "no plain array images"),
        ({"images": np.zeros((5, 8, 8)), "labels": np.arange(4)}, "give one integer per image"),
        ({"images": np.zeros((5, 8, 8)), "members": np.arange(5)}, "give one boolean per image"),
        ({"images": np.zeros((5, 8, 8)), "labels": np.arange(5)}, "network's 2 classes"),
        ({"images": np.zeros((5, 9, 9))}, "the network takes (1, 8, 8)"),
    ],
)
def test_bad_archives_are_one_line(cli, tmp_path, arrays, remedy):
    np.savez(tmp_path / "asked.npz", **arrays)
    assert remedy in cli(*ASK, "membership.candidates=asked.npz").error
