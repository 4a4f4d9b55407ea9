"""Images decoded from the units they never fired."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from simudy import SGD, Adam, Evidence, Recipe, SimudyError, StatelessModel, simulate, stopping
from simudy.attack.first_layer import off_units
from simudy.attack.first_layer.off_units import decode_off_units, fitted_row
from simudy.attack.first_layer.relu_layer import ReluLayer
from simudy.dynamics import tree
from simudy.dynamics.optim import Clipped, Groups
from simudy.victim.data import Faces
from simudy.victim.models import CNN, MLP

SHAPE, CLASSES, N = (1, 8, 8), 4, 12
WIDE = partial(MLP, width=200)


def trained(recipe=None, *, make=WIDE, images=None, dtype=torch.float64, seed=0):
    """Evidence of a run on random images, or on those given, and the images."""
    torch.manual_seed(seed)
    images = torch.randn(N, *SHAPE, dtype=dtype) if images is None else images.to(dtype)
    n, shape = len(images), tuple(images.shape[1:])
    model = StatelessModel(make(shape, CLASSES).to(dtype))
    recipe = recipe or Recipe(SGD(lr=0.1), epochs=10)
    batches = recipe.collate(images, torch.arange(n) % CLASSES)
    with torch.no_grad():
        final = simulate(model.loss, model.params, batches, recipe.rules(n))
    return Evidence(model, model.params, tree.detach(final), recipe, shape, CLASSES, n), images


def rough(images, noise=0.7, *, times=1, seed=1):
    """Copies of images at a cosine of 1 / √(1 + noise²), in another order."""
    rng = torch.Generator().manual_seed(seed)
    copies = images.repeat(times, 1, 1, 1)
    copies = copies + noise * images.std() * torch.randn(
        copies.shape, generator=rng, dtype=torch.float64
    )
    return copies[torch.randperm(len(copies), generator=rng)].to(images)


def errors(found, truth):
    """By training image, the relative distance to the nearest of those found."""
    apart = torch.cdist(truth.flatten(1).double(), found.flatten(1).double())
    return apart.min(1).values / truth.flatten(1).norm(dim=1)


RECIPES = {
    "full batch": Recipe(SGD(lr=0.1), epochs=10),
    "mini-batches": Recipe(SGD(lr=0.1), epochs=4, batch_size=5, shuffle=True),
    "momentum": Recipe(SGD(lr=0.05, momentum=0.9, nesterov=True), epochs=8),
    "weight decay": Recipe(SGD(lr=0.1, weight_decay=5e-2), epochs=10),
    "all": Recipe(
        Clipped(SGD(lr=0.05, momentum=0.9, weight_decay=1e-2), max_norm=0.5),
        epochs=6,
        batch_size=4,
        schedule=[1 / (1 + t) for t in range(18)],
    ),
}


# --- what is decoded


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_rough_images_become_exact_whatever_the_recipe(recipe):
    evidence, truth = trained(recipe)
    decoded = decode_off_units(evidence, rough(truth))
    assert decoded.complete and decoded.n == N
    assert float(decoded.certificates.max()) < 1e-6
    assert float(errors(decoded.images, truth).max()) < 1e-6


def test_a_person_is_told_of_each_round_and_may_stop_it():
    evidence, truth = trained(next(iter(RECIPES.values())))
    told: list[dict[str, int]] = []
    assert decode_off_units(evidence, rough(truth), on_round=told.append).log == told
    stopping.ask_to_stop()
    try:
        with pytest.raises(KeyboardInterrupt):
            decode_off_units(evidence, rough(truth))
    finally:
        stopping.forget()


@pytest.mark.parametrize("dtype, noise", [(torch.float32, 0.7), (torch.float64, 0.7)])
def test_single_precision_is_enough(dtype, noise):
    evidence, truth = trained(dtype=dtype)
    decoded = decode_off_units(evidence, rough(truth, noise))
    assert decoded.complete and decoded.images.dtype == dtype
    assert float(errors(decoded.images, truth).max()) < (1e-3 if dtype == torch.float32 else 1e-6)


def test_every_image_knows_the_start_it_came_from():
    evidence, truth = trained()
    decoded = decode_off_units(evidence, rough(truth, 0.5))
    near = torch.cdist(rough(truth, 0.5).flatten(1), truth.flatten(1)).argmin(1)
    assert (
        torch.cdist(decoded.images.flatten(1), truth.flatten(1))
        .argmin(1)
        .equal(near[decoded.starts])
    )
    assert decoded.log[0]["starts"] == N and decoded.log[-1]["certified"] == N


def test_what_one_search_missed_another_has():
    """Starts for some of the images only, then for the others, twice over: pooled, they are all."""
    evidence, truth = trained()
    some, others = rough(truth[:8], times=2), rough(truth[6:], times=2, seed=2)
    decoded = decode_off_units(evidence, torch.cat([some, others]))
    assert decoded.complete and float(errors(decoded.images, truth).max()) < 1e-6


def test_faces_which_are_much_alike():
    faces = Faces(n=16, size=12).load(seed=0)
    images = faces.normalisation.normalise(faces.victim.images).double()
    evidence, truth = trained(images=images)
    decoded = decode_off_units(evidence, rough(truth, 0.5, times=2))
    assert decoded.complete and float(errors(decoded.images, truth).max()) < 1e-5


# --- what is not


def true_rows(evidence, truth):
    """The rows of D, of length 1, in the layer's coordinates."""
    layer = ReluLayer.of(evidence)
    d = torch.linalg.solve(layer.coordinates(truth).mT, layer.moved[:, :-1])
    return layer, nn.functional.normalize(d)


def test_the_layer_is_read_as_the_images_moved_it():
    evidence, truth = trained(RECIPES["all"])
    layer, rows = true_rows(evidence, truth)
    d = rows @ layer.units.mT
    never = torch.stack([layer.highest(c) for c in layer.coordinates(truth)]) < 0
    share = (d * never).square().sum() / d.square().sum()
    assert float(d[never].abs().median()) < 1e-12 and float(share) < 5e-3
    lengths = torch.linalg.solve(rows.mT, layer.moved)
    torch.testing.assert_close(lengths[:, :-1] / lengths[:, -1:], layer.coordinates(truth))


@pytest.mark.parametrize("recipe", ["full batch", "all"])
def test_unrelated_starts_certify_nothing_wrongly(recipe):
    """Of hundreds of rows fitted to unrelated images, those below the threshold are true ones."""
    evidence, truth = trained(RECIPES[recipe])
    layer, rows = true_rows(evidence, truth)
    starts = torch.randn(
        400, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    fits = [fitted_row(layer, highest) for highest in layer.highest(layer.coordinates(starts))]
    certified = torch.stack([row for row, certificate in fits if certificate < 0.01])
    assert 0 < len(certified) < 400  # in so few dimensions some are near an image by chance
    assert float((certified @ rows.mT).abs().max(1).values.min()) > 0.98
    decoded = decode_off_units(evidence, starts, rounds=1)
    assert len(decoded.images) == N


def test_part_of_the_images_is_said_to_be_part():
    evidence, truth = trained()
    decoded = decode_off_units(evidence, rough(truth[:7], 0.3), rounds=1)
    assert not decoded.complete and len(decoded.images) == 7 == int(decoded.certified.sum())
    begun = errors(rough(truth[:7], 0.3), truth[:7])
    assert float(errors(decoded.images, truth[:7]).mean()) < float(begun.mean())


# --- refusals


@pytest.mark.parametrize(
    "make, recipe, message",
    [
        (partial(MLP, width=200, activation="tanh"), None, "no ReLU"),
        (partial(MLP, width=200, activation="gelu"), None, "no ReLU"),
        (partial(MLP, width=200, activation="elu"), None, "no ReLU"),
        (partial(MLP, width=200, bias="none"), None, "no trained bias"),
        (partial(CNN, width=4), None, "first layer is not linear"),
        (WIDE, Recipe(Groups({"*.bias": SGD(lr=0.2), "*": SGD(lr=0.1)}), epochs=5), "another rule"),
        (WIDE, Recipe(Adam(lr=1e-3), epochs=3), "Adam moves weights out"),
    ],
)
def test_refusals(make, recipe, message):
    evidence, truth = trained(recipe, make=make)
    with pytest.raises(SimudyError, match=f"off units cannot be decoded: .*{message}") as refused:
        decode_off_units(evidence, truth)
    assert "\n" not in str(refused.value)


def test_images_that_rounding_hides_or_that_depend_on_each_other_are_refused():
    evidence, truth = trained(Recipe(SGD(lr=1e-3), epochs=3), dtype=torch.float32)
    with pytest.raises(SimudyError, match=r"hides \d+ of 12 images"):
        decode_off_units(evidence, truth, precision=torch.bfloat16)
    twice = truth.clone()
    twice[1] = twice[0]
    evidence, truth = trained(images=twice)
    with pytest.raises(SimudyError, match="12 images span 11 dimensions"):
        decode_off_units(evidence, truth)


def test_what_int8_hides_is_refused():
    evidence, truth = trained(Recipe(SGD(lr=1e-2), epochs=3), dtype=torch.float32)
    levels = {k: w.abs().max() / 127 for k, w in evidence.final.items()}
    final = {k: (w / levels[k]).round() * levels[k] for k, w in evidence.final.items()}
    published = dataclasses.replace(evidence, final=final, precision="int8")
    with pytest.raises(SimudyError, match=r"hides \d+ of 12 images"):
        decode_off_units(published, truth)


def test_noise_that_was_added_to_the_weights_is_no_image():
    evidence, truth = trained()
    rng = torch.Generator().manual_seed(0)
    final = {k: w + 1e-2 * torch.randn(w.shape, generator=rng) for k, w in evidence.final.items()}
    noised = dataclasses.replace(evidence, final=final, hidden=dict.fromkeys(final, 1e-2))
    with pytest.raises(SimudyError, match=r"hides \d+ of 12 images"):
        decode_off_units(noised, truth)


def test_a_layer_too_narrow_certifies_nothing():
    evidence, truth = trained(make=partial(MLP, width=13))
    decoded = decode_off_units(evidence, truth)
    assert not decoded.certified.any() and len(decoded.images) == N


def test_images_that_come_to_predict_one_row_are_certified_once(monkeypatch):
    """Solved for anew, some images may collapse: then the others are not certified by their row."""
    evidence, truth = trained()
    solved = off_units._solved

    def collapsing(layer, rows):
        images = solved(layer, rows)
        return torch.cat([images[:1].expand(5, -1), images[5:]])

    monkeypatch.setattr(off_units, "_PROOFS", 1)
    monkeypatch.setattr(off_units, "_solved", collapsing)
    decoded = decode_off_units(evidence, rough(truth))
    assert float(decoded.certificates.max()) < 0.01  # each for itself looks certain
    assert int(decoded.certified.sum()) == N - 4 and not decoded.complete
