"""Nodes as a person means them: another target, a distance or prior of one's own, both betas."""

from __future__ import annotations

import pytest
from conftest import result

OWN = """
from torch import nn
from torch.nn.functional import avg_pool2d

from simudy.dynamics import tree


class Net(nn.Module):
    def __init__(self, classes: int, hidden: int = 4):
        super().__init__()
        first, last = nn.Linear(64, hidden), nn.Linear(hidden, classes)
        self.layers = nn.Sequential(nn.Flatten(), first, nn.Tanh(), last)

    def forward(self, images):
        return self.layers(images)


def far(simulated, real, *, times: float = 1.0):
    return times * tree.norm(tree.sub(simulated, real)) / tree.norm(real)


class Blur:
    def __init__(self, size: int = 3):
        self.size = size

    def __call__(self, images):
        return avg_pool2d(images, self.size, stride=1).square().mean()


class Mute:
    pass
"""


@pytest.fixture(autouse=True)
def own(tmp_path):
    (tmp_path / "own_of_test_nodes.py").write_text(OWN)


def experiment(tmp_path, name: str, text: str) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(f"# @package _global_\n{text}")


NET = "model:\n  _target_: own_of_test_nodes.Net\n  hidden: 6\n"
SMALL = ("--config-dir=mine", "data.n=4", "data.size=8", "recipe.epochs=3", "outer.iterations=2")


@pytest.mark.parametrize("name", ["plain", "derived"])
def test_an_experiment_replaces_a_model_without_its_keys(cli, tmp_path, name):
    experiment(tmp_path, "plain", NET)
    experiment(tmp_path, "derived", "defaults:\n  - plain\n  - _self_\n\nseed: 3\n")
    outcome = cli(*SMALL, f"experiment={name}", "model.hidden=5", "hydra.run.dir=a", tiny=False)
    assert outcome.code == 0, outcome.err
    assert "Net with 337 parameters" in outcome.out
    assert "width" not in (tmp_path / "a/config.yaml").read_text()


def test_the_command_line_replaces_the_model_of_an_experiment(cli, tmp_path):
    experiment(tmp_path, "plain", NET)
    other = ("model._target_=simudy.victim.models.MLP", "model.width=16")
    outcome = cli(*SMALL, "experiment=plain", *other, "hydra.run.dir=a", tiny=False)
    assert outcome.code == 0, outcome.err  # `hidden` is of the experiment's model
    assert "MLP with" in outcome.out


def test_a_misspelt_key_in_an_experiment_is_refused(cli, tmp_path):
    experiment(tmp_path, "plain", NET.replace("hidden", "hiden"))
    error = cli(*SMALL, "experiment=plain", tiny=False).error
    assert "model.hiden: own_of_test_nodes.Net takes no 'hiden': did you mean hidden?" in error


def test_the_jobs_of_a_sweep_are_named_by_what_they_are(cli, tmp_path):
    experiment(tmp_path, "plain", NET)
    sweep = ("-m", "experiment=plain", "seed=0,1", "inner=adam", "inner.betas=[0.8,0.9]")
    one_step = ("gradient=mixed", "dummy.images=pixels", "hydra.sweep.dir=s")
    assert cli(*SMALL, *sweep, *one_step, tiny=False).code == 0
    found = sorted((tmp_path / "s").glob("*/result.json"))
    assert len(found) == 2
    assert all(result(path.parent)["config_hash"] == path.parent.name for path in found)


ADAM = ("inner=adam", "gradient=mixed", "dummy.images=pixels")


def test_betas_are_both_in_one(cli, tmp_path):
    assert cli(*ADAM, "inner.betas=[0.8,0.9]", "hydra.run.dir=a").code == 0
    assert cli(*ADAM, "inner.beta1=0.8", "inner.beta2=0.9", "hydra.run.dir=b").code == 0
    assert result(tmp_path / "a")["config_hash"] == result(tmp_path / "b")["config_hash"]
    guess = "+attack.inner.betas=[0.7,0.9]"
    assert cli(*ADAM, guess, "hydra.run.dir=c").code == 0
    assert "beta1: 0.7" in (tmp_path / "c/config.yaml").read_text()
    assert result(tmp_path / "c")["objective"] != result(tmp_path / "a")["objective"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("inner.betas=[0.8]", "inner.betas=[0.8]: give two numbers, as in [0.9,0.999]"),
        ("inner.betas=0.8", "inner.betas=0.8: give two numbers"),
        ("inner.betas=[0.8,2]", "inner.beta2=2: give a number, from 0 to below 1"),
        ("inner.betas=[0.8,0.9] inner.beta2=0.9", "inner says betas and one of the two"),
        ("inner=sgd +inner.betas=[0.8,0.9]", "SGD takes no 'betas'"),
    ],
)
def test_betas_that_are_none(cli, override, words):
    assert words in cli(*ADAM, *override.split()).error


def test_a_distance_of_ones_own(cli, tmp_path):
    far = "distance._target_=own_of_test_nodes.far"
    assert cli(far, "hydra.run.dir=a").code == 0
    assert cli(far, "distance.times=2.0", "hydra.run.dir=b").code == 0
    once, twice = (result(tmp_path / name)["distance"] for name in "ab")
    assert once > 0 and twice > once
    assert "far takes no 'tims': did you mean times?" in cli(far, "distance.tims=2").error
    assert "give a word or a mapping" in cli("distance=3").error


def test_a_prior_of_ones_own(cli, tmp_path):
    blur = ("prior.term._target_=own_of_test_nodes.Blur", "+prior.term.size=5")
    for attack in ("simudy", "one_step"):
        outcome = cli(*blur, "prior.weight=0.5", f"attack={attack}", f"hydra.run.dir={attack}")
        assert outcome.code == 0, outcome.err
        found = result(tmp_path / attack)
        assert found["objective"] > found["distance"]
    assert cli(*blur, "prior.weight=0.0", "hydra.run.dir=none").code == 0
    assert cli("hydra.run.dir=plain").code == 0
    none, plain = (result(tmp_path / name)["objective"] for name in ("none", "plain"))
    assert none == plain
    mute = "prior.term._target_=own_of_test_nodes.Mute"
    assert "makes nothing that can be called" in cli(mute).error


@pytest.mark.parametrize("place", ["my runs", "a=b", "ümläut", "it's (1) [2]", "run #1; 50 %"])
def test_a_path_as_it_is_typed(cli, tmp_path, place):
    assert cli(f"hydra.run.dir={place}/run", "dry_run=true").code == 0
    assert (tmp_path / place / "run").is_dir()
    missing = cli(f"evidence.initial={place}/a.pt", f"evidence.final={place}/b.pt", "evidence.n=1",
                  "evidence.shape=[1,8,8]", "evidence.classes=2").error  # fmt: skip
    assert f"{place}/a.pt" in missing


def test_a_comma_is_told_how_to_be_quoted(cli, tmp_path):
    assert (
        "quote it twice: \"data.path='a,b'\"" in cli("data=npz", "data.path=a,b", tiny=False).error
    )
    assert cli("hydra.run.dir='a,b'", "dry_run=true").code == 0
    assert (tmp_path / "a,b").is_dir()
