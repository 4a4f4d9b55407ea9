"""What happens when nothing is said: the same from Python as from the command line."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import result, train_victim
from hydra import compose, initialize_config_module
from safetensors.torch import load_file
from torch import nn

from simudy import SGD, Adam, Evidence, Factored, Recipe, Reverse, reconstruct
from simudy.app.settings import factories
from simudy.app.settings.schema import register
from simudy.attack.coordinates import Frequencies, Pixels, SpanCoordinates, coordinates_named
from simudy.attack.methods.simudy import Simudy
from simudy.attack.search import Outer
from simudy.victim.models import MLP

register()


def victim(*, linear=True, shape=(1, 8, 8), rule=None):
    first = [] if linear else [nn.Conv2d(1, 1, 1)]
    layers = [nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 2)]
    images = torch.randn(4, *shape)
    recipe = Recipe(rule or SGD(lr=0.1), epochs=3)
    module = nn.Sequential(*first, *layers)
    return train_victim(module, recipe, images, torch.arange(4) % 2, classes=2)


def test_the_command_line_without_a_word_makes_the_defaults_of_the_classes():
    with initialize_config_module("simudy.conf", version_base="1.3"):
        cfg = compose("config", ["outer.iterations=300"])
    evidence = victim()
    made = factories.method(cfg, evidence, labels="balanced")
    ours = dataclasses.replace(
        Simudy(),
        recipe=evidence.recipe,
        gradient=Simudy().problem(evidence, seed=0).settings.gradient,
    )
    assert made == ours
    outer = factories.outer(cfg)
    plain = {f.name for f in dataclasses.fields(Outer)} - {"optimizer", "schedule"}
    assert {k: getattr(outer, k) for k in plain} == {k: getattr(Outer(), k) for k in plain}
    leaf = torch.zeros(1, requires_grad=True)
    theirs, default = (o.optimizer([leaf], lr=o.lr) for o in (outer, Outer()))
    assert type(theirs) is type(default)
    assert theirs.param_groups[0].items() == default.param_groups[0].items()
    assert outer.schedule is not None
    assert outer.schedule(theirs).T_max == Outer().iterations


@pytest.mark.parametrize(
    ("options", "coordinates", "gradient"),
    [
        ({}, SpanCoordinates, Factored),
        ({"linear": False}, Frequencies, Factored),
        ({"rule": Adam(lr=0.01)}, Frequencies, Reverse),
        ({"shape": (64,)}, SpanCoordinates, Factored),
        ({"shape": (64,), "rule": Adam(lr=0.01)}, Pixels, Reverse),
    ],
)
def test_what_is_not_said_is_what_fits(options, coordinates, gradient):
    evidence = victim(**options)
    assert isinstance(coordinates_named("auto", evidence), coordinates)
    problem = Simudy().problem(evidence, seed=0)
    assert isinstance(problem.dummy.coordinates, coordinates)
    assert isinstance(problem.settings.gradient, gradient)
    problem.objective(0.0)[0].backward()
    assert bool(problem.dummy.latent.grad.isfinite().all())


def test_reconstruct_is_the_command(cli, tmp_path):
    """Four faces out of the default network, by either door, at 0.99 or better and alike."""
    faces = ("data.n=4", "model.width=300", "outer.iterations=100", "device=cpu")
    assert cli(*faces, "hydra.run.dir=run", tiny=False).code == 0
    assert result(tmp_path / "run")["ssim_paper"] > 0.99
    module = MLP((1, 25, 25), 2, width=300)
    found = reconstruct(
        Evidence.load(tmp_path / "run/evidence", module), outer=Outer(iterations=100)
    )
    theirs = load_file(tmp_path / "run/reconstruction.safetensors")["images"]
    torch.testing.assert_close(found.images, theirs, rtol=0, atol=1e-6)
