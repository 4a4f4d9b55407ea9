"""What the evidence itself says of why a reconstruction may fall short, and int8 files."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from simudy import SGD, Recipe
from simudy.attack.checkpoints.findings import spacing
from simudy.attack.checkpoints.limits import independent_numbers, limits, rounding_share
from simudy.attack.checkpoints.quantised import grid_step
from simudy.attack.evidence import Evidence, evidence_from_weights

SHAPE, N = (1, 8, 8), 5


def net(*, frozen: bool = False, norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    first: list[nn.Module] = (
        [nn.Linear(64, 30), nn.BatchNorm1d(30)] if norm else [nn.Linear(64, 30)]
    )
    module = nn.Sequential(nn.Flatten(), *first, nn.Tanh(), nn.Linear(30, 3))
    if frozen:
        for layer in list(module)[:-1]:
            layer.requires_grad_(False)
    return module


def audited(module: nn.Module, publish=lambda w: w, *, lr: float = 0.5) -> Evidence:
    before = {k: v.clone() for k, v in module.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(N, *SHAPE, generator=generator), torch.arange(N) % 3
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=lr)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
    after = {k: publish(v) for k, v in module.state_dict().items()}
    recipe, facts = Recipe(SGD(lr=lr), epochs=4), {"shape": SHAPE, "classes": 3, "n": N}
    return evidence_from_weights(module, before, after, recipe=recipe, **facts)


def quantised(by_row: bool):
    def publish(weights: torch.Tensor) -> torch.Tensor:
        if weights.ndim < 2:
            return weights
        top = weights.abs().amax(1, keepdim=True) if by_row else weights.abs().max()
        return (weights / top * 127).round().clamp(-127, 127) * (top / 127)

    return publish


def test_independent_numbers_are_those_of_matrices_of_their_rank():
    evidence = audited(net())
    # five images move the first layer by rank 5; softmax's gradients add up to 0 over the classes
    expected = 5 * (30 + 64 - 5) + 30 + 2 * (3 + 30 - 2) + 3
    assert independent_numbers(evidence) == expected
    assert not limits(evidence)
    assert "50 images have 3,200 pixels" in limits(evidence, n=50)[0]


def test_a_head_alone_does_not_determine_the_images():
    found = limits(audited(net(frozen=True)))
    assert found == [
        "the weights moved by 65 independent numbers and 5 images have 320 pixels: the weights do "
        "not determine them, and priors fill in the rest"
    ]


def test_norms_in_train_mode_are_named():
    assert any("norms in train mode" in line for line in limits(audited(net(norm=True))))


def test_rounding_is_weighed_against_the_displacement():
    coarse = lambda w: w.bfloat16().float()  # noqa: E731

    def begun() -> nn.Module:
        module = net()
        for parameter in module.parameters():
            parameter.data = coarse(parameter.data)
        return module

    far, near = (audited(begun(), coarse, lr=lr) for lr in (0.5, 0.02))
    assert rounding_share(near) > 5 * rounding_share(far)
    assert any("rounding to bfloat16" in line for line in limits(near))


@pytest.mark.parametrize("by_row", [False, True])
def test_int8_is_read_off_the_levels(by_row):
    evidence = audited(net(), quantised(by_row), lr=0.05)
    assert evidence.precision == "int8"
    assert "the weights are rounded to int8, dequantised" in evidence.notes["findings"]
    assert any("rounding to int8" in line for line in limits(evidence))
    weight = evidence.final["1.weight"]
    step = spacing(weight, torch.int8)
    top = weight.abs().amax(1, keepdim=True) if by_row else weight.abs().max()
    assert torch.allclose(step, (top / 127).double().expand_as(step), rtol=1e-4)
    # what was rounded away is as large as is said
    exact = audited(net(), lr=0.05)
    off = math.sqrt(
        sum(float((evidence.final[k] - exact.final[k]).square().sum()) for k in exact.final)
    )
    moved = math.sqrt(sum(float(v.square().sum()) for v in evidence.displacement.values()))
    assert rounding_share(evidence) == pytest.approx(off / moved, rel=0.1)


def test_floating_weights_lie_on_no_levels():
    torch.manual_seed(2)
    assert grid_step(torch.randn(20, 16)) is None
    assert grid_step(torch.randn(20, 16).bfloat16().float()) is None
    assert grid_step(torch.zeros(20, 16)) is None
    assert grid_step(torch.randn(300)) is None
