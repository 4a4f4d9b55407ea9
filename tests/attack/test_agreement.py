"""Searches that found the same images agree; those that found nothing do so as often as told."""

from __future__ import annotations

import pytest
import torch

from simudy.attack.agreement import agreement
from simudy.errors import SimudyError

N, CLASSES, RATE = 20, 10, 0.05


def searches(count: int, *, noise: float, common: float = 0.0, seed: int = 0):
    """Noisy copies of the same images, each in an order of its own; and these orders."""
    generator = torch.Generator().manual_seed(seed)
    truth, labels = torch.randn(N, 3, 8, 8, generator=generator), torch.arange(N) % CLASSES
    everywhere = common * torch.randn(3, 8, 8, generator=generator)
    orders = [torch.randperm(N, generator=generator) for _ in range(count)]
    draws = [noise * torch.randn(truth.shape, generator=generator) for _ in range(count)]
    found = [truth[o] + draw + everywhere for o, draw in zip(orders, draws, strict=True)]
    return orders, found, [labels[o] for o in orders]


def unrelated(*, seed: int, smooth: bool = False):
    """Three searches of nothing but noise."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(N, 3, 8, 8, generator=generator) for _ in range(3)]
    if smooth:
        found = [torch.nn.functional.avg_pool2d(x, 5, 1, 2) for x in found]
    return found, [torch.arange(N) % CLASSES] * 3


@pytest.mark.parametrize("common", [0.0, 10.0])
def test_searches_for_the_same_images_agree_on_all(common):
    orders, found, labels = searches(3, noise=0.7, common=common)
    agreed = agreement(found, labels)
    assert agreed.consistent(false_rate=RATE).all()
    for k in (1, 2):
        assert torch.equal(orders[k][agreed.partners[k - 1]], orders[0])


def test_what_all_images_have_in_common_counts_for_nothing():
    plain, shifted = (agreement(*searches(3, noise=0.7, common=c)[1:]) for c in (0.0, 10.0))
    torch.testing.assert_close(plain.cosines, shifted.cosines, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("smooth", [False, True])
def test_unrelated_searches_agree_no_more_often_than_told(smooth):
    drawn = [agreement(*unrelated(seed=seed, smooth=smooth)) for seed in range(30)]
    share = torch.stack([a.consistent(false_rate=RATE) for a in drawn]).double().mean()
    assert share <= RATE


def test_one_image_that_only_one_search_found_is_not_consistent():
    _, found, labels = searches(3, noise=0.3)
    found[0][7] = torch.randn(3, 8, 8)
    consistent = agreement(found, labels).consistent(false_rate=RATE)
    assert not consistent[7] and consistent.sum() == N - 1


def test_p_values_are_ranks_among_the_unrelated():
    agreed = agreement(*unrelated(seed=0))
    at_least = (agreed.unrelated >= agreed.cosines[:, None]).sum(1)
    torch.testing.assert_close(agreed.p_values, (1 + at_least) / (1 + 3 * N))


def test_learned_labels_are_matched_as_probabilities():
    _, found, labels = searches(2, noise=0.3)
    soft = [torch.nn.functional.one_hot(y, CLASSES).float() * 0.9 + 0.01 for y in labels]
    assert agreement(found, soft).consistent(false_rate=RATE).all()


def test_too_little_to_compare_is_refused():
    _, found, labels = searches(2, noise=0.3)
    with pytest.raises(SimudyError, match="two searches or more"):
        agreement(found[:1], labels[:1])
    with pytest.raises(SimudyError, match="of 3 dummies or more"):
        agreement([x[:2] for x in found], [y[:2] for y in labels])
    with pytest.raises(SimudyError, match=r"a rate of 0\.024 or more"):
        agreement(found, labels).consistent(false_rate=0.01)
