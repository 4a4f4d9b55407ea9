"""The position embedding's term of the distance."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from simudy import SGD, Recipe
from simudy.attack.distance import position
from simudy.attack.evidence import Evidence
from simudy.attack.methods.simudy import Simudy
from simudy.errors import SimudyError
from simudy.victim.models import ViT
from simudy.victim.train import train


def test_only_the_embedding_counts():
    real = {"position": torch.tensor([1.0, 0.0]), "head.weight": torch.tensor([1.0])}
    same = {"position": torch.tensor([2.0, 0.0]), "head.weight": torch.tensor([-5.0])}
    assert position(same, real).item() == pytest.approx(0, abs=1e-6)
    assert position({**same, "position": torch.tensor([0.0, 3.0])}, real).item() == pytest.approx(1)
    with pytest.raises(SimudyError, match=r"set Simudy\(position=0\)"):
        position({"head": real["position"]}, {"head": real["position"]})


def test_it_is_added_to_the_distance_with_its_weight():
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    run = Recipe(optimizer=SGD(lr=0.1), epochs=2)
    model, final, _ = train(ViT((3, 8, 8), 2, width=8, depth=1), images, labels, run)
    evidence = Evidence(model, model.params, final, run, shape=(3, 8, 8), classes=2, n=2)
    without, added = (
        dataclasses.replace(Simudy(images="pixels"), position=w).problem(evidence, seed=0)
        for w in (0.0, 0.5)
    )
    moved = {k: v - evidence.initial[k] for k, v in added.simulate().items()}
    extra = 0.5 * position(moved, evidence.displacement)
    torch.testing.assert_close(added.objective(0.0)[1], without.objective(0.0)[1] + extra)
