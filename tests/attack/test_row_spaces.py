"""Membership by row spaces: what a layer sees, in which span, and by which rule it is chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import train_victim
from torch import nn

from simudy import SGD, Evidence, Recipe
from simudy.attack.membership.layer_inputs import Layer, Probe, unfold
from simudy.attack.membership.metric import Whitening
from simudy.attack.membership.outside import RowSpaceTest
from simudy.attack.membership.row_space import NoPower, choose, ranked, row_space
from simudy.errors import SimudyError
from simudy.victim.models import CNN, MLP, ResNet

pytestmark = pytest.mark.usefixtures("float64")


def images(count: int, side: int = 8) -> torch.Tensor:
    """Smooth, as natural ones are."""
    return F.avg_pool2d(torch.randn(count, 3, side + 2, side + 2), 3, 1) * 3


def victim(net: nn.Module, members: torch.Tensor, **how: Any) -> Evidence:
    recipe = Recipe(SGD(lr=how.pop("lr", 0.05)), epochs=how.pop("epochs", 5))
    return train_victim(net, recipe, members, torch.arange(len(members)) % 3, classes=3)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": (2, 1)},
        {"groups": 2, "padding": 1},
        {"padding": "same"},
        {"padding": "valid"},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "circular", "dilation": 2},
    ],
)
def test_weight_times_vectors_is_the_convolution(options):
    layer, inputs = nn.Conv2d(4, 6, (3, 2), bias=False, **options), torch.randn(2, 4, 7, 9)
    vectors = unfold(layer, inputs)  # (n, groups, spots, size)
    weight = layer.weight.reshape(layer.groups, 6 // layer.groups, -1)
    outputs = (vectors @ weight.mT).transpose(2, 3).flatten(1, 2)
    assert torch.allclose(outputs, layer(inputs).flatten(2))


def test_weight_times_tokens_is_the_linear_layer():
    layer, inputs = nn.Linear(5, 3, bias=False), torch.randn(2, 4, 5)
    assert torch.allclose(unfold(layer, inputs)[:, 0] @ layer.weight.T, layer(inputs))


def test_the_first_layer_holds_its_images_patches_and_no_others():
    """Over a whole run: what a first layer multiplies does not change."""
    members, others = images(2), images(6)
    net = nn.Sequential(nn.Conv2d(3, 60, 3, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(240, 3))
    space = row_space(
        held := victim(net, members), Probe(held, held.initial, None).layers(members)[0]
    )
    assert (space.layer.spots, space.layer.capacity, space.rank) == (4, 27, 8)  # 2 images · 4
    outside = [
        1 - (unfold(net[0], x) @ space.basis.mT).square().sum() / unfold(net[0], x).square().sum()
        for x in (members, others)
    ]
    assert outside[0] < 1e-9 and outside[1] > 0.05


def test_grouped_convolutions_have_a_row_space_each():
    members = images(2)
    body = nn.Conv2d(6, 40, 4, stride=4, groups=2)
    net = nn.Sequential(nn.Conv2d(3, 6, 1), body, nn.ReLU(), nn.Flatten(), nn.Linear(160, 3))
    held = victim(net, members, epochs=1)
    layer = Probe(held, held.initial, None).layers(members)[1]
    space = row_space(held, layer)
    assert (layer.groups, layer.spots, space.rank) == (2, 4, 16)
    vectors = Probe(held, held.initial, None).vectors(layer, members)
    assert float((vectors - vectors @ space.basis.mT @ space.basis).norm()) < 1e-9


def test_whitening_is_the_inverse_root_of_second_moments():
    vectors, asked = torch.randn(1, 30, 6) @ torch.randn(6, 6), torch.randn(5, 6)
    moments = vectors[0].T @ vectors[0] / 30
    ridge = 0.01 * moments.trace() / 6
    values, axes = torch.linalg.eigh(moments + ridge * torch.eye(6))
    expected = (asked @ axes) * (ridge / values).sqrt() @ axes.T
    assert torch.allclose(Whitening.of(vectors)(asked[None])[0], expected)


def test_a_high_ridge_leaves_energy_as_it_is():
    asked = torch.randn(1, 5, 6)
    assert torch.allclose(Whitening.of(torch.randn(1, 30, 6), ridge=1e9)(asked), asked)


def test_fewer_public_vectors_than_dimensions_leave_the_rest_as_it_is():
    vectors = torch.cat([torch.randn(1, 2, 3), torch.zeros(1, 2, 3)], 2)
    aside = torch.tensor([[[0.0, 0, 0, 1, 2, 3]]])
    assert torch.allclose(Whitening.of(vectors)(aside), aside)


CASES = {
    "mlp": lambda: MLP((3, 8, 8), 3, width=60),
    "cnn": lambda: CNN((3, 8, 8), 3, width=32),
    "group norm": lambda: ResNet((3, 8, 8), 3, width=8, norm="group"),
    "batch norm in train mode": lambda: ResNet((3, 8, 8), 3, width=8).train(),
    "frozen batch norm": lambda: ResNet((3, 8, 8), 3, width=8).eval(),
}


@pytest.mark.parametrize("case", CASES)
def test_members_stand_out(case):
    torch.manual_seed(3)
    members, public, others = images(6), images(20), images(40)
    held = victim(CASES[case](), members)
    test = RowSpaceTest.of(held, public)
    assert bool((test.scores(members).min() > test.scores(others)).double().mean() > 0.95)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_members_stand_out_of_rounded_weights(kind):
    members, public, others = images(6), images(20), images(40)
    exact = victim(MLP((3, 8, 8), 3, width=60), members)
    ends = {
        name: {k: w.to(kind).double() for k, w in getattr(exact, name).items()}
        for name in ("initial", "final")
    }
    held = dataclasses.replace(exact, precision=str(kind).removeprefix("torch."), **ends)
    test = RowSpaceTest.of(held, public)
    assert test.space.rank <= 6 and RowSpaceTest.of(exact, public).space.rank == 6
    assert float(test.scores(members).min()) > float(test.scores(others).max())


def test_weight_decay_is_taken_off():
    members = images(6)
    recipe = Recipe(SGD(lr=0.05, weight_decay=0.1), epochs=5)
    net = MLP((3, 8, 8), 3, width=60)
    held = train_victim(net, recipe, members, torch.arange(6) % 3, classes=3)
    assert RowSpaceTest.of(held, images(20)).space.rank == 6


@pytest.mark.parametrize("training", [True, False])
def test_a_score_hangs_on_its_image_alone(training):
    held = victim(ResNet((3, 8, 8), 3, width=8).train(training), images(6))
    before = {k: v.clone() for k, v in held.model.module.state_dict().items()}
    test, asked = RowSpaceTest.of(held, images(20)), images(5)
    alone = torch.cat([test.scores(one[None]) for one in asked])
    assert torch.allclose(test.scores(asked), alone)
    after = held.model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def layer(name: str, *, out: int, size: int, spots: int) -> Layer:
    return Layer(name, 1, out, size, spots)


def test_the_rule_counts():
    """Determined layers by spots, then wide ones by spots per dimension, the last at the end."""
    stem = layer("stem", out=16, size=27, spots=256)
    middle = layer("middle", out=64, size=288, spots=16)
    late = layer("late", out=128, size=1152, spots=4)
    square = layer("square", out=128, size=128, spots=1)
    head = layer("head", out=10, size=128, spots=1)
    every = [stem, middle, late, square, head]
    assert [a.name for a in ranked(every, 5)] == ["square", "late", "middle", "stem", "head"]
    assert [a.name for a in ranked(every, 1000)] == ["late", "middle", "stem", "square", "head"]
    assert [a.name for a in ranked(every, None)] == ["late", "middle", "stem", "square", "head"]


def test_the_layers_that_are_chosen():
    members = images(6)
    for net, name in (
        (MLP((3, 8, 8), 3, width=60), "layers.1"),
        (ResNet((3, 8, 8), 3, width=8, norm="group"), "stages.6.body.0"),
        (CNN((3, 8, 8), 3, width=32), "blocks.6"),
    ):
        assert RowSpaceTest.of(victim(net, members), members[:2]).layer.name == name


def test_what_was_frozen_is_not_asked():
    net = MLP((3, 8, 8), 3, width=60)
    net.layers[1].requires_grad_(False)
    held = victim(net, images(6))
    assert RowSpaceTest.of(held, images(4)).layer.name == "layers.3"
    layers = Probe(held, held.initial, None).layers(images(2))
    with pytest.raises(SimudyError, match=r"none tells of its inputs: give weights"):
        choose(held, layers[:1])


def test_a_full_row_space_has_no_power():
    narrow, wide = nn.Linear(192, 4), nn.Linear(4, 6)
    held = victim(
        nn.Sequential(nn.Flatten(), narrow, nn.Tanh(), wide, nn.ReLU(), nn.Linear(6, 3)), images(8)
    )
    first, second, _ = Probe(held, held.initial, None).layers(images(2))
    assert choose(held, [second, first]).layer == first
    with pytest.raises(NoPower, match="tell nothing here"):
        choose(held, [second])


def test_public_images_must_fit():
    held = victim(MLP((3, 8, 8), 3, width=60), images(6))
    with pytest.raises(SimudyError, match=r"two or more of \(3, 8, 8\)"):
        RowSpaceTest.of(held, images(1))
