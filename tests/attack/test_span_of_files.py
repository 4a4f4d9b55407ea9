"""The first layer's span as far as files show it: rounded weights, rules by name, counts told."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import train_victim
from torch import nn

from simudy import SGD, Recipe, SimudyError
from simudy.attack.evidence import evidence_from_weights
from simudy.attack.first_layer.span import Span
from simudy.attack.methods.simudy import Simudy
from simudy.attack.size import rank_estimate
from simudy.dynamics.optim import Groups

SHAPE, N = (1, 12, 12), 6


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 2))


def trained(rule=None, *, n=N, epochs=10):
    torch.manual_seed(0)
    images, recipe = torch.randn(n, *SHAPE), Recipe(rule or SGD(lr=0.1), epochs=epochs)
    return train_victim(network(), recipe, images, torch.arange(n) % 2, classes=2), images


def published(evidence, kind, **told):
    """As read back from files in a coarser type."""
    files = [
        {k: v.to(kind) for k, v in weights.items()}
        for weights in (evidence.initial, evidence.final)
    ]
    facts = {"recipe": evidence.recipe, "shape": SHAPE, "classes": 2, **told}
    return evidence_from_weights(network(), *files, **facts)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("told", [{}, {"n": N}])
def test_a_span_is_not_made_of_rounding(kind, told):
    """bf16 has a noise floor 2¹⁶ times float32's: what lies under it is no image."""
    evidence, images = trained()
    read = published(evidence, kind, **told)
    span = Span.of(read)
    assert span.rank == N and Simudy().problem(read, seed=0).dummy.latent.shape == (N, N)
    tolerance = 0.5 if kind is torch.bfloat16 else 0.1
    inside = span.decode(span.encode(images))
    assert float((inside - images).norm() / images.norm()) < tolerance


def test_told_the_number_the_span_has_it():
    """Even if rounding hides some of the directions."""
    read = published(trained(epochs=1)[0], torch.bfloat16, n=N)
    assert Span.of(read).rank == N


def test_more_directions_than_images_are_a_contradiction():
    evidence, _ = trained()
    told = dataclasses.replace(evidence, n=4)
    with pytest.raises(SimudyError, match="moved in 6 directions, more than 4 images"):
        Span.of(told)
    with pytest.raises(SimudyError, match="moved in 6 directions, more than 4 images"):
        Simudy().problem(told, seed=0)  # no retreat to other coordinates
    with pytest.raises(SimudyError, match=r"set Evidence\(n=…\)"):
        Span.of(published(evidence, torch.float16, n=4))


def test_groups_by_name_have_a_span():
    rule = Groups({"3.*": SGD(lr=0.05), "re:1\\..*": SGD(lr=0.1, weight_decay=0.01)})
    evidence, images = trained(rule)
    span = Span.of(evidence)
    assert span.rank == N and rank_estimate(evidence).n == N
    torch.testing.assert_close(span.decode(span.encode(images)), images, rtol=0, atol=1e-3)


def test_a_frozen_first_layer_has_none():
    evidence, _ = trained(Groups({"1.*": None, "*": SGD(lr=0.1)}))
    with pytest.raises(SimudyError, match=r"did not train.*set Method\(images='frequencies'\)"):
        Span.of(evidence)
    assert Simudy().problem(evidence, seed=0).dummy.latent.shape == (N, *SHAPE)
