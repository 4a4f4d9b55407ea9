"""What is no picture: rows of a table and volumes, reconstructed from Python."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from simudy import SGD, Outer, Recipe, Simudy, evidence_from_weights, reconstruct

NETS = {
    "table": ((30,), lambda: nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 2))),
    "volume": (
        (1, 5, 5, 5),
        lambda: nn.Sequential(nn.Conv3d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 27, 2)),
    ),
}


@pytest.mark.parametrize("kind", NETS)
def test_rows_and_volumes_are_searched_for(kind):
    """The distance falls, and is nought at the truth."""
    shape, make = NETS[kind]
    torch.manual_seed(0)
    module, n = make(), 2
    rows, labels = torch.randn(n, *shape), torch.arange(n)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(rows), labels).backward()
        optimizer.step()
    recipe = Recipe(SGD(lr=0.2), epochs=4)
    facts = {"shape": shape, "classes": 2, "n": n}
    evidence = evidence_from_weights(make(), before, module.state_dict(), recipe=recipe, **facts)
    simudy = Simudy(labels=labels)
    found = reconstruct(evidence, method=simudy, outer=Outer(iterations=100))
    assert found.images.shape == rows.shape
    assert found.distance < 0.2 * found.history[0]["distance"]
    there = Simudy(labels=labels, start=rows, noise=0.0, images="pixels")
    stayed = reconstruct(evidence, method=there, outer=Outer(iterations=1))
    assert stayed.history[0]["distance"] < 1e-6
