"""Several reconstructions made one, and dummies that begin at it."""

from __future__ import annotations

import csv

import pytest
import torch
from conftest import result
from safetensors.torch import load_file

from simudy.attack.consensus import consensus
from simudy.errors import SimudyError

N, CLASSES = 12, 3


def reconstructions(count: int, *, noise: float = 0.8):
    """The truth, its labels, and noisy copies of both, each in an order of its own."""
    generator = torch.Generator().manual_seed(0)
    truth, labels = torch.randn(N, 3, 8, 8, generator=generator), torch.arange(N) % CLASSES
    orders = [torch.randperm(N, generator=generator) for _ in range(count)]
    found = [truth[o] + noise * torch.randn(truth.shape, generator=generator) for o in orders]
    return truth, labels, orders, found, [labels[o] for o in orders]


def test_each_finds_its_place_and_the_error_goes_down():
    truth, labels, orders, found, theirs = reconstructions(5)
    images, agreed = consensus(found, theirs)
    assert agreed.tolist() == labels[orders[0]].tolist()
    of_one, of_all = (float((x - truth[orders[0]]).square().mean()) for x in (found[0], images))
    assert of_all < 0.4 * of_one  # the median of five: 0.29 of the variance


def test_one_is_itself_and_two_are_averaged():
    _, _, _, (a, _), (y, _) = reconstructions(2)
    same, labels = consensus([a], [y])
    assert torch.equal(same, a) and torch.equal(labels, y)
    torch.testing.assert_close(consensus([a, a + 1], [y, y])[0], a + 0.5)


def test_a_dummy_that_went_astray_is_voted_down():
    truth, _, orders, found, theirs = reconstructions(3, noise=0.1)
    found[0][3] = 50 * torch.randn(3, 8, 8)
    off = (consensus(found, theirs)[0] - truth[orders[0]]).square().mean((1, 2, 3))
    assert float(off.max()) < 0.1


def test_classes_are_matched_before_looks():
    images, labels = torch.randn(2, 1, 4, 4), torch.tensor([0, 1])
    middle, agreed = consensus([images, images.flip(0)], [labels, labels])
    assert agreed.tolist() == [0, 1]
    torch.testing.assert_close(middle, images.mean(0).expand_as(middle))


def test_probabilities_are_averaged():
    _, _, _, found, theirs = reconstructions(3)
    soft = [torch.nn.functional.one_hot(y, CLASSES) * 0.7 + 0.1 for y in theirs]
    _, agreed = consensus(found, soft)
    assert agreed.shape == (N, CLASSES)
    torch.testing.assert_close(agreed, soft[0])


@pytest.mark.parametrize("other", [(N - 1, 3, 8, 8), (N, 1, 8, 8)])
def test_what_cannot_be_matched(other):
    _, _, _, (a,), (y,) = reconstructions(1)
    with pytest.raises(SimudyError, match="one number of images, one shape and one kind of labels"):
        consensus([a, torch.zeros(other)], [y, y[: other[0]]])
    with pytest.raises(SimudyError, match="one kind of labels"):
        consensus([a, a], [y, torch.ones(N, CLASSES)])


@pytest.mark.parametrize("images", ["pixels", "span"])
def test_a_run_goes_on_where_another_ended(cli, tmp_path, images):
    assert cli("hydra.run.dir=a", f"dummy.images={images}").code == 0
    again = (
        "evidence.folder=a/evidence",
        f"dummy.images={images}",
        "dummy.noise=0",
        "dummy.start=a",
        "seed=1",
    )
    outcome = cli("hydra.run.dir=b", *again)
    assert outcome.code == 0 and "dummies begin where 1 earlier run" in outcome.out
    with (tmp_path / "b/history.csv").open(newline="") as file:
        begun = float(next(csv.DictReader(file))["distance"])
    assert begun == pytest.approx(result(tmp_path / "a")["distance"], rel=1e-3)
    found = [
        load_file(tmp_path / run / "reconstruction.safetensors")["labels"].tolist() for run in "ab"
    ]
    assert found[0] == found[1]


def test_a_run_begins_where_a_sweep_agrees(cli, tmp_path):
    assert cli("hydra.run.dir=a").code == 0
    known = "evidence.folder=a/evidence"
    assert cli("hydra.sweep.dir=many", known, "seed=1,2", "-m").code == 0
    outcome = cli("hydra.run.dir=b", known, "dummy.start=[a,many]", "dummy.noise=0")
    assert outcome.code == 0 and "dummies begin where 3 earlier runs agree: a, many/" in outcome.out


def test_learned_labels_come_along(cli, tmp_path):
    learned = ("dummy.images=pixels", "dummy.labels=learned", "evidence.folder=a/evidence")
    assert cli("hydra.run.dir=a", *learned[:2]).code == 0
    assert (
        cli("hydra.run.dir=b", *learned, "dummy.start=a", "dummy.noise=0", "outer.lr=1e-6").code
        == 0
    )
    before, after = (
        load_file(tmp_path / run / "reconstruction.safetensors")["labels"] for run in "ab"
    )
    torch.testing.assert_close(after, before, rtol=0, atol=1e-3)
    error = cli("hydra.run.dir=c", "evidence.folder=a/evidence", "dummy.start=a").error
    assert "set dummy.labels=learned" in error


def test_nowhere_to_begin(cli, tmp_path):
    assert cli("hydra.run.dir=a").code == 0
    known = "evidence.folder=a/evidence"
    assert (
        "give the folder of an earlier run, or of a sweep"
        in cli(known, "dummy.start=nowhere").error
    )
    assert "give natural, the folder of a run" in cli(known, "dummy.start=[3]").error
    assert "set dummy.labels=balanced" in cli(known, "dummy.start=a", "dummy.labels=learned").error
    assert (
        "4 images of (1, 8, 8)"
        in cli(known, "dummy.start=a", "attack.n=6", "dummy.images=pixels").error
    )
    (tmp_path / "a/reconstruction.safetensors").write_bytes(b"noise" * 100)
    assert "is damaged" in cli(known, "dummy.start=a").error
