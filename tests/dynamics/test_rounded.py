"""Convolutions of rounded factors: against factors rounded by hand, and what is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simudy import StatelessModel
from simudy.dynamics.model.rounded import RoundedConvolutions
from simudy.victim.models import ResNet

CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
ONCE = 2.0**-8  # what rounding to 8 significant bits may change, relative to the largest entry


def drawn(dims: int, channels: int = 16, **settings: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    inward = channels // settings.get("groups", 1)
    images = torch.randn(2, channels, *(6,) * dims)
    return images, torch.randn(12, inward, *(3,) * dims), torch.randn(12)


@pytest.mark.parametrize("dims", CONVOLVE)
@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"dilation": 2}])
def test_factors_are_rounded_to_bfloat16_and_sums_are_not(dims, settings):
    images, weight, bias = drawn(dims)
    factors = [t.bfloat16().double() for t in (images, weight)]
    expected = CONVOLVE[dims](*factors, bias.double(), **settings)
    with RoundedConvolutions():
        found = CONVOLVE[dims](images, weight, bias, **settings)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) < ONCE * float(expected.abs().max())
    exact = CONVOLVE[dims](images.double(), weight.double(), bias.double(), **settings)
    assert float((found - exact).norm()) > 1.2 * float((found - expected).norm())


@pytest.mark.parametrize("channels", [8, 13, 64])
def test_derivatives_of_both_orders_are_near_the_exact_ones(channels):
    images, weight, _ = drawn(2, channels)
    generator = torch.Generator().manual_seed(1)
    outer, inner = (torch.randn(12, generator=generator) for _ in range(2))

    def second(dtype: torch.dtype) -> list[Tensor]:
        leaves = x, w = [t.to(dtype).requires_grad_() for t in (images, weight)]
        value = (outer.to(dtype)[:, None, None] * F.conv2d(x, w).square()).sum()
        slopes = torch.autograd.grad(value, leaves, create_graph=True)
        along = (inner.to(dtype)[:, None, None, None] * slopes[1]).sum()
        return [*slopes, *torch.autograd.grad(along, leaves)]

    exact = second(torch.float64)
    with RoundedConvolutions():
        found = second(torch.float32)
    for one, other in zip(found, exact, strict=True):
        assert 0 < (one - other).norm().item() / other.norm().item() < 0.02


@pytest.mark.parametrize(
    ("channels", "settings", "dtype"),
    [(3, {}, torch.float32), (16, {"groups": 2}, torch.float32), (16, {}, torch.float64)],
)
def test_few_channels_groups_and_other_types_stay_as_they_are(channels, settings, dtype):
    images, weight, bias = (t.to(dtype) for t in drawn(2, channels, **settings))
    with RoundedConvolutions():
        by_name = F.conv2d(images, weight, bias, **settings)
        by_place = F.conv2d(images, weight, bias, 1, 0, 1, settings.get("groups", 1))
    expected = F.conv2d(images, weight, bias, **settings)
    assert torch.equal(by_name, expected) and torch.equal(by_place, expected)


def test_it_is_a_view_and_the_model_itself_stays_exact():
    torch.manual_seed(0)
    model = StatelessModel(ResNet((3, 8, 8), 4, width=8).eval())
    images = torch.randn(2, 3, 8, 8)
    exact, rounded = model(model.params, images), model.rounded()
    off = float((rounded(model.params, images) - exact).norm() / exact.norm())
    assert 1e-4 < off < 0.05 and torch.equal(model(model.params, images), exact)
    moved = rounded.to(torch.float32)
    assert torch.equal(moved(model.params, images), rounded(model.params, images))


def test_layers_without_convolutions_are_not_touched():
    model = StatelessModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    images = torch.randn(2, 1, 4, 4)
    assert torch.equal(model.rounded()(model.params, images), model(model.params, images))
