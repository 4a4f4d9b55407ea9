"""``evidence.truth`` and ``evidence.heldout``: an audit judged against a person's own images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import result
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from simudy.app.store.secret import Secret
from simudy.app.tasks import finish

OWN = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 2))

def four():
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(5))[:4]
    return TensorDataset(images, torch.arange(4) % 2)
"""
BYTES = (255 * torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(5))).byte().numpy()
NAMES = ("anna.png", "bert.png", "carla.png", "dora.png")
AUDIT = (
    *("evidence.initial=a.pt", "evidence.final=b.pt", "evidence.shape=[1,8,8]"),
    *("evidence.classes=2", "evidence.n=4", "evidence.mean=[0.5]", "evidence.std=[0.25]"),
    *("model._target_=net_of_test_truth.Net", "recipe.epochs=6", "inner.lr=0.01"),
    *("outer.iterations=40", "dummy.noise=0.1", "hydra.run.dir=run"),
)


@pytest.fixture
def audit(cli, tmp_path):
    """Two files of weights, the images beside them in each form, and the command."""
    (tmp_path / "net_of_test_truth.py").write_text(OWN)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 2))
    torch.save(net.state_dict(), tmp_path / "a.pt")
    images = (torch.from_numpy(BYTES[:4, None]).float() / 255 - 0.5) / 0.25
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), torch.arange(4) % 2).backward()
        optimizer.step()
    torch.save(net.state_dict(), tmp_path / "b.pt")
    for i, pixels in enumerate(BYTES):
        place = tmp_path / ("hers" if i < 4 else "others") / ("ab"[i % 2])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / (NAMES[i] if i < 4 else f"{i}.png"))
    np.savez(tmp_path / "hers.npz", images=BYTES[:4])
    np.savez(tmp_path / "others.npz", images=BYTES[4:])
    return lambda *argv: cli(*AUDIT, *argv, tiny=False)


@pytest.fixture
def undrawn(monkeypatch):
    """Without the pictures, which take the longest."""
    monkeypatch.setattr(finish, "_draw", lambda *args: args[-1].gallery.write_bytes(b""))


def test_a_folder_is_scored_under_its_own_names(audit, tmp_path):
    outcome = audit("evidence.truth=hers", "evidence.heldout=others")
    assert outcome.code == 0, outcome.err
    found = result(tmp_path / "run")
    assert found["ssim_paper"] > 2 * max(found["floor"].values())
    assert set(found["floor"]) == {"heldout", "noise", "class_mean"}
    assert set(found["images"]) == {"a/anna.png", "b/bert.png", "a/carla.png", "b/dora.png"}
    best = [one["ssim_paper"] for one in found["images"].values()]
    assert best == sorted(best, reverse=True)
    assert sum(best) / 4 == pytest.approx(found["ssim_paper"])
    for page in ("report.html", "gallery.html"):
        assert "carla.png" in (tmp_path / "run" / page).read_text()
    secret = Secret.load(tmp_path / "run/secret")
    assert secret is not None and secret.labelled
    assert secret.victim.labels.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(
        secret.victim.images[:, 0], torch.from_numpy(BYTES[[0, 2, 1, 3]]).float() / 255
    )


@pytest.mark.usefixtures("undrawn")
def test_the_attack_does_not_look(audit, tmp_path):
    """Whatever is given as the truth, the reconstruction is the same to the bit."""
    ends = []
    for argv in ((), ("evidence.truth=hers",), ("evidence.truth=others",)):
        assert audit(*argv, f"hydra.run.dir=run{len(ends)}").code == 0
        path = tmp_path / f"run{len(ends)}/reconstruction.safetensors"
        ends.append(load_file(path)["images"])
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@pytest.mark.usefixtures("undrawn")
def test_an_archive_or_a_dataset(audit, tmp_path):
    assert audit("evidence.truth=hers.npz", "evidence.heldout=others.npz").code == 0
    archive = result(tmp_path / "run")
    assert set(archive["images"]) == {f"hers.npz[{i}]" for i in range(4)}
    where = "hydra.run.dir=other"
    outcome = audit("+evidence.truth._target_=net_of_test_truth.four", where)
    assert outcome.code == 0, outcome.err
    dataset = result(tmp_path / "other")
    assert dataset["ssim_paper"] == pytest.approx(archive["ssim_paper"], abs=0.05)
    assert dataset["floor"]["heldout"] is None
    assert "no evidence.heldout" in outcome.out


@pytest.mark.usefixtures("undrawn")
def test_images_may_come_to_light_after_the_attack(audit, cli, tmp_path):
    assert audit().code == 0
    assert result(tmp_path / "run")["ssim_paper"] is None
    again = ("task=score", "hydra.run.dir=run", "model._target_=net_of_test_truth.Net")
    outcome = cli(*again, "evidence.truth=hers", "evidence.heldout=others", tiny=False)
    assert outcome.code == 0, outcome.err
    first = result(tmp_path / "run")
    assert first["ssim_paper"] > 0.3 and "a/anna.png" in first["images"]
    assert cli(*again, tiny=False).code == 0  # the images are laid down beside it
    assert result(tmp_path / "run")["ssim_paper"] == first["ssim_paper"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("evidence.truth=nowhere",), "set evidence.truth to one of images"),
        (("evidence.truth=empty",), "set evidence.truth to a folder that has some"),
        (("evidence.truth=hers/a",), "holds 2 images and the run had 4"),
        (("evidence.truth=large.npz",), "the network takes (1, 8, 8)"),
        (("evidence.truth=beyond.npz",), "outside [0, 1]"),
        (("evidence.truth=classes.npz",), "number the classes from 0"),
        (("evidence.heldout=others",), "set evidence.truth too"),
        (("evidence.truth=hers", "evidence.heldout=large.npz"), "images of evidence.heldout"),
        (("+evidence.truth._target_=torch.nn.Linear",), "evidence.truth"),
        (("evidence.truth=3",), "evidence.truth"),
        (("evidence.truth=hers.npz", "dummy.labels=true"), "needs the classes"),
    ],
)
def test_what_does_not_fit_is_one_line(audit, tmp_path, argv, words):
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "large.npz", images=np.zeros((4, 9, 9), np.uint8))
    np.savez(tmp_path / "beyond.npz", images=np.full((4, 8, 8), 2.0))
    np.savez(tmp_path / "classes.npz", images=BYTES[:4], labels=np.arange(4))
    assert words in audit(*argv).error
    assert not (tmp_path / "run/result.json").exists()


def test_a_victim_of_ours_has_its_secret_already(cli, tmp_path):
    assert "set evidence.initial" in cli("evidence.truth=hers").error


@pytest.mark.usefixtures("undrawn")
def test_names_must_be_as_many_as_images(audit, cli, tmp_path):
    assert audit("evidence.truth=hers").code == 0
    path = tmp_path / "run/secret/secret.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"names": ["anna.png"]}))
    again = ("task=score", "hydra.run.dir=run", "model._target_=net_of_test_truth.Net")
    assert "names and images do not fit" in cli(*again, tiny=False).error


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("classes", [1, 2])
def test_real_targets_stay_real(audit, tmp_path, classes):
    """Of a regression, and probabilities: they are never cut to whole numbers."""
    one: tuple[str, ...] = ()
    real = np.array([0.25, -1.5, 0.75, 2.5]) if classes == 1 else np.full((4, 2), [0.3, 0.7])
    np.savez(tmp_path / "hers.npz", images=BYTES[:4], labels=real)
    if classes == 1:
        source = OWN.replace("nn.Linear(40, 2)", "nn.Linear(40, 1)")
        (tmp_path / "net_of_one_output.py").write_text(source)
        for name in ("a.pt", "b.pt"):
            held = torch.load(tmp_path / name)
            held = {k: v[:1] if k.startswith("3.") else v for k, v in held.items()}
            torch.save(held, tmp_path / name)
        loss = "recipe.loss._target_=torch.nn.MSELoss"
        one = ("evidence.classes=1", "dummy.labels=learned", loss)
        one += ("model._target_=net_of_one_output.Net",)
    outcome = audit("evidence.truth=hers.npz", *one)
    assert outcome.code == 0, outcome.err
    secret = Secret.load(tmp_path / "run/secret")
    assert secret is not None and secret.true_targets is not None and not secret.labelled
    torch.testing.assert_close(secret.true_targets.double(), torch.from_numpy(real))


def test_what_images_were_trained_towards_is_not_made_up(audit, cli, tmp_path):
    """Without labels there is no run to measure the exposure of."""
    outcome = audit("evidence.truth=hers.npz", "task=exposure", "exposure.images=1")
    assert "needs what the images were trained towards" in outcome.error
