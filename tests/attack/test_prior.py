"""What an image looks like before any evidence: each term by hand, and in every method."""

import math
from typing import Any

import pytest
import torch
from conftest import difference, train_victim
from torch import nn

from simudy import SGD, Recipe, SimudyError, colour_variation, total_variation
from simudy.attack.evidence import Evidence
from simudy.attack.methods.kkt import KKT
from simudy.attack.methods.one_step import OneStep
from simudy.attack.methods.simudy import Simudy
from simudy.attack.methods.surrogate import Surrogate
from simudy.attack.methods.two_step import TwoStep
from simudy.attack.prior import outside_box, pixel_range

METHODS: list[Any] = [Simudy, OneStep, TwoStep, Surrogate, KKT]

pytestmark = pytest.mark.usefixtures("float64")


def victim(channels: int) -> Evidence:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(channels * 4, 3))
    images, labels = torch.randn(2, channels, 2, 2), torch.arange(2)
    return train_victim(module, Recipe(SGD(lr=0.1)), images, labels, classes=3)


def test_total_variation_and_the_box():
    checker = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    assert float(total_variation(checker)) == 2.0
    assert float(total_variation(torch.ones(2, 3, 4, 4))) == 0.0
    low, high = pixel_range((0.5,), (0.25,), like=checker)
    assert (float(low), float(high)) == (-2.0, 2.0)
    assert float(outside_box(torch.tensor([[[[3.0, -2.0]]]]), low, high)) == 0.5


def test_grey_has_no_colour_and_red_has():
    checker = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    grey = checker.expand(1, 3, 2, 2)
    assert float(colour_variation(grey)) == pytest.approx(0, abs=1e-12)
    red = torch.stack([checker, 0 * checker, 0 * checker])[None]
    planes = 1 / math.sqrt(2), 1 / math.sqrt(6)  # red along red–blue and along green–purple
    assert float(colour_variation(red)) == pytest.approx(2.0 * sum(planes) / 2)
    assert float(colour_variation(red + grey)) == pytest.approx(float(colour_variation(red)))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_weighs_colour(method):
    evidence = victim(channels=3)
    plain, weighed = (
        method(images="pixels", n=2, colour=c).problem(evidence, seed=1) for c in (0.0, 0.5)
    )
    (without, distance), (whole, same) = plain.objective(0.99), weighed.objective(0.99)
    torch.testing.assert_close(whole - without, 0.5 * colour_variation(weighed.images()))
    torch.testing.assert_close(distance, same)


def test_its_slope():
    problem = Simudy(images="pixels", n=2, colour=0.5).problem(victim(channels=3), seed=1)
    latent, along = problem.dummy.latent, torch.randn(2, 3, 2, 2)
    (slope,) = torch.autograd.grad(problem.objective(1.0)[0], latent)
    numeric = difference(problem, along, progress=1.0, step=1e-6)
    assert float((slope * along).sum()) == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_images_without_colours_are_refused_at_once(method):
    with pytest.raises(SimudyError, match=r"of 1×2×2 .* no colours .* set Method\(colour=0\)"):
        method(images="pixels", n=2, colour=0.5).problem(victim(channels=1), seed=1)
