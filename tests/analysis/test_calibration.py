"""p-values, ROC and the test of uniformity, against what can be counted by hand."""

from __future__ import annotations

import pytest
import torch

from simudy.analysis.calibration import auc, p_values, roc, separation, uniformity


def test_p_values_count_the_reference():
    reference = torch.tensor([1.0, 2.0, 3.0])
    assert p_values(torch.tensor([0.0, 2.0, 2.5, 9.0]), reference).tolist() == [1, 0.75, 0.5, 0.25]


def test_p_values_of_strangers_are_never_too_small():
    """P(p ≤ α) ≤ α, also where scores tie."""
    draws = torch.randint(0, 5, (4000, 20)).double()  # one stranger and 19 others, many ties
    ps = torch.cat([p_values(row[:1], row[1:]) for row in draws])
    for level in (0.05, 0.1, 0.25, 0.5):
        assert float((ps <= level).double().mean()) <= level + 3 * (level / 4000) ** 0.5


def test_separation_by_hand():
    members, others = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, 0.0])
    assert auc(members, others) == pytest.approx((2 + 1.5 + 1) / 6)
    found = separation(members, others)
    assert found is not None and found.tpr == pytest.approx(1 / 3)  # above 2, no false one
    assert separation(members, others, at=0.5).tpr == 1.0  # type: ignore[union-attr]
    assert separation(members, others[:0]) is None


def test_the_curve_rises_and_its_area_is_the_auc():
    torch.manual_seed(1)
    members, others = torch.randn(200) + 1, torch.randn(300)
    false, true = roc(members, others)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert bool((false.diff() >= 0).all() and (true.diff() >= 0).all())
    assert float(torch.trapezoid(true, false)) == pytest.approx(auc(members, others))


def test_uniformity_tells_the_same_from_another():
    torch.manual_seed(1)
    same, reference = torch.randn(200), torch.randn(150)
    even, shifted = uniformity(same, reference), uniformity(same + 1, reference)
    assert even is not None and even.p > 0.01
    assert shifted is not None and shifted.p < 1e-6 and shifted.distance > even.distance
    assert uniformity(same[:0], reference) is None
