"""Bad input: one line that names the remedy, exit code 2, no traceback."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

MODULE = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, hidden: int = 4):
        first, last = nn.Linear(64, hidden), nn.Linear(hidden, 2)
        super().__init__(nn.Flatten(), first, nn.BatchNorm1d(hidden), nn.Tanh(), last)
"""
AUDIT = (
    *(
        "evidence.initial=a.safetensors",
        "evidence.final=b.pt",
        "model._target_=net_of_test_errors.Net",
    ),
    *(
        "evidence.shape=[1,8,8]",
        "evidence.classes=2",
        "recipe.epochs=3",
        "outer.iterations=3",
        "hydra.run.dir=run",
    ),
)


def net(seed: int, hidden: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    layers = (
        nn.Flatten(),
        nn.Linear(64, hidden),
        nn.BatchNorm1d(hidden),
        nn.Tanh(),
        nn.Linear(hidden, 2),
    )
    return nn.Sequential(*layers).state_dict()


@pytest.fixture
def audit(cli, tmp_path):
    """``audit(initial, final, …)``: those weights, on disk, attacked."""
    (tmp_path / "net_of_test_errors.py").write_text(MODULE)

    def call(initial, final, *argv):
        save_file(initial, tmp_path / "a.safetensors")
        torch.save(final, tmp_path / "b.pt")
        return cli(*AUDIT, *argv, tiny=False)

    return call


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("outer.iteration=3", "did you mean outer.iterations?"),
        ("outre.lr=3", "no setting outre: did you mean outer"),
        ("inner.momentun=0.9", "no setting inner.momentun: did you mean inner.momentum?"),
        ("data=facez", "Available options in 'data': cifar10 faces"),
        ("experiment=none_such", "Could not find 'experiment/none_such'"),
        ("outer.lr=abc", "outer.lr: Value 'abc' of type 'str' could not be converted to Float"),
        ("outer.iterations=1.5", "outer.iterations: Value '1.5'"),
        ("recipe.shuffle=7x", "recipe.shuffle"),
        ("inner.lr=abc", "inner.lr=abc: give a number"),
        ("data.n=abc", "data.n=abc: give a whole number"),
        ("model.width=foo", "model.width=foo: give a whole number"),
        ("model.activation=rely", "no activation called 'rely': choose from"),
        ("adjoint._target_=simudy.Nothing", "adjoint._target_=simudy.Nothing: cannot import it"),
        ("attack.recipe.epochs=many", "attack.recipe.epochs=many: give a whole number"),
        ("attack.inner.lr=fast", "attack.inner.lr=fast: give a number"),
        ("+attack.inner.beta1=0.5", "no number called 'beta1'"),
        ("outer.lrs={imagez: 1.0}", "outer.lrs names 'imagez', but the variables are latent"),
        ("dummy.learn=[speed]", "no number called 'speed'"),
        ("task=reconstrct", "task=reconstrct: choose from run, victim, reconstruct, score"),
        ("distance=manhattan", "no distance 'manhattan': choose from cosine"),
        ("device=cuda:99", "device=cuda:99"),
        ("device=gpu", "device=gpu: choose from auto, cpu, cuda"),
        ("dummy.labels=[0,1]", "2 labels given for 4 images"),
        ("dummy.labels=[0,1,2,9]", "4 labels given for 4 images of 2 classes"),
        ("dummy.labels=false", "choose balanced, learned, true or wrong"),
        ("data.n=1000", "data.n=1000, and there are 200 images left: lower it"),
        (
            "data.size=6",
            "images of 6×6 are too small for SSIM, whose window is 7×7: set a larger data.size",
        ),
        ("inner.lr=1e30", "training diverged, use a lower lr"),
        ("a=b=c=", "no setting a"),
    ],
)
def test_a_wrong_setting(cli, override, words):
    assert words in cli(override, "hydra.run.dir=run").error


def test_labels_of_the_secret_must_fit_the_dummies(cli):
    assert "4 labels given for 6 images" in cli("dummy.labels=true", "attack.n=6").error


def test_missing_data(cli, tmp_path):
    small = ("hydra.run.dir=run",)
    assert "data.root is not set" in cli("data=cifar10", *small, tiny=False).error
    assert (
        "cifar-10-binary.tar.gz"
        in cli("data=cifar10", "data.root=nowhere", *small, tiny=False).error
    )
    assert (
        "no class folders in 'nowhere'"
        in cli("data=folder", "data.root=nowhere", *small, tiny=False).error
    )


def test_an_audit(audit, tmp_path):
    """Two files of weights, an architecture, and nothing else: reconstructed, not scored."""
    from conftest import result

    outcome = audit(
        net(0),
        net(1),
        "evidence.n=3",
        "dummy.images=pixels",
        "model.hidden=4".replace("model", "+model"),
    )
    assert outcome.code == 0, outcome.err
    found = result(tmp_path / "run")
    assert found["n"] == 3 and found["iterations"] == 3
    assert [found[k] for k in ("ssim_paper", "ssim", "psnr", "mse", "recovered", "floor")] == [
        None
    ] * 6
    assert (tmp_path / "run/gallery.png").exists() and (tmp_path / "run/report.html").exists()
    assert not (tmp_path / "run/secret").exists()


def test_weights_of_another_model(audit):
    other = {f"x{k}": v for k, v in net(0).items()}
    assert "of another model" in audit(other, net(1)).error
    assert "of another model" in audit(net(0), other).error
    assert "has shape (5,), the model's (4,)" in audit(net(0, hidden=5), net(1)).error


def test_weights_that_tell_nothing(audit):
    assert "nothing was learned" in audit(net(0), net(0)).error
    spoiled = {k: v.clone() for k, v in net(1).items()}
    spoiled["1.weight"][0, 0] = torch.nan
    assert "hold NaN or infinity in '1.weight'" in audit(net(0), spoiled).error


def test_what_an_audit_must_be_told(audit):
    assert "come together" in audit(net(0), net(1), "evidence.final=null").error
    assert "evidence.shape is not set" in audit(net(0), net(1), "evidence.shape=null").error
    assert "evidence.classes is not set" in audit(net(0), net(1), "evidence.classes=null").error
    assert "take 1 numbers each" in audit(net(0), net(1), "evidence.std=[1,1,1]").error
    assert "no weights at nowhere.pt" in audit(net(0), net(1), "evidence.final=nowhere.pt").error
    assert (
        "number of images is unknown: set attack.n"
        in audit(net(0), net(1), "dummy.images=pixels").error
    )


def test_files_that_hold_no_weights(audit, tmp_path):
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 100)
    (tmp_path / "noise.pt").write_bytes(b"noise" * 100)
    for name in ("noise.safetensors", "noise.pt"):
        assert (
            f"cannot read weights from {name}"
            in audit(net(0), net(1), f"evidence.final={name}").error
        )


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("evidence/evidence.json", "evidence.json is damaged"),
        ("evidence/initial.safetensors", "cannot read weights from"),
        ("reconstruction.safetensors", "reconstruction.safetensors is damaged"),
    ],
)
def test_a_damaged_run(cli, tmp_path, file, words):
    assert cli("hydra.run.dir=run").code == 0
    path = tmp_path / "run" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert words in cli("hydra.run.dir=run", "task=score", tiny=False).error


def test_nothing_to_score(cli):
    assert "no config.yaml in" in cli("hydra.run.dir=run", "task=score", tiny=False).error


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+foo=1", "no setting foo: choose from"),
        ("+label_smoothing=0.1", "no setting label_smoothing"),
        ("+tv=0.1", "no setting tv: did you mean prior.tv?"),
        ("+prior.l2=0.1", "no setting prior.l2: did you mean prior.tv or prior.box"),
        (
            "prior.colour=0.1",
            "images of 1×8×8 numbers have no colours to weigh: set prior.colour=0",
        ),
        ("+outer.iteration=3", "no setting outer.iteration: did you mean outer.iterations"),
        ("+recipe.epoch=3", "no setting recipe.epoch: did you mean recipe.epochs"),
        ("+victim.pretrain.epoch=3", "did you mean victim.pretrain.epochs"),
        ("+recipe.loss.label_smoothing=0.1", "recipe.loss names no _target_"),
        ("attack.n=0", "attack.n=0: give a whole number, from 1 to"),
        ("attack.n=-3", "attack.n=-3: give a whole number, from 1 to"),
        ("dummy.learn=[lr,lr]", "dummy.learn names 'lr' more than once"),
        ("gradient=factored gradient.layers=foo", "gradient.layers=foo: give auto or all"),
        ("recipe.loss._target_=torch.nn.MSELos", "recipe.loss._target_=torch.nn.MSELos: cannot"),
        (
            "+inner.momentun=0.5",
            "inner.momentun: simudy.dynamics.optim.SGD takes no 'momentun': did you mean momentum?",
        ),
        ("inner.momentun=0.5", "(+inner.momentun=… hands it to the _target_, if that takes it)"),
    ],
)
def test_a_setting_that_nobody_reads(cli, override, words):
    assert words in cli(*override.split(), "hydra.run.dir=run").error


def test_a_setting_of_a_node_that_is_not_chosen(cli):
    assert "no setting gradient.layers (+gradient.layers" in cli("gradient.layers=foo").error


def test_no_hint_recommends_what_is_refused(cli):
    assert "+" not in cli("prior.l2=0.1").error
