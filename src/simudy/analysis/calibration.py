"""What a score says against images that are known not to be members: p-values, and how well it
tells members from strangers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


def p_values(scores: Tensor, reference: Tensor) -> Tensor:
    """The chance that a non-member scores as high: ``(1 + #{reference ≥ score}) / (1 + m)``.

    Where an image is as likely as any of the reference images to come out highest (it is
    exchangeable with them), P(p ≤ α) ≤ α, whatever the score is. No p-value is below 1/(1 + m).

    Args:
        scores: ``(k,)``, high for members.
        reference: ``(m,)``, scores of images that are no members.
    """
    above = (reference[None] >= scores[:, None]).sum(1)
    return (1 + above).double() / (1 + len(reference))


@dataclass(frozen=True)
class Separation:
    """How well a score tells members from others.

    Attributes:
        auc: the chance that a member scores higher than another image; 0.5 is chance.
        tpr: members found when at most 1 % of the others are called members.
        members, others: how many of each there were. Below 100 others, ``tpr`` is that without any
            false one.
    """

    auc: float
    tpr: float
    members: int
    others: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def separation(members: Tensor, others: Tensor, *, at: float = 0.01) -> Separation | None:
    """Of scores ``(k,)`` of members and ``(m,)`` of others; None where there are none of either.

    Args:
        at: false positives allowed, as a fraction.
    """
    if not len(members) or not len(others):
        return None
    false, true = roc(members, others)
    found = float(true[false <= at].max())
    return Separation(auc(members, others), found, len(members), len(others))


def auc(members: Tensor, others: Tensor) -> float:
    """The chance that a member scores higher, ties counted half (Mann and Whitney, 1947)."""
    above = (members[:, None] > others[None]).double() + 0.5 * (members[:, None] == others[None])
    return float(above.mean())


def roc(members: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """False and true positive rates, ascending from (0, 0) to (1, 1), at every threshold."""
    marks = torch.cat([members, others]).unique().flip(0)
    rates = [(scores[None] >= marks[:, None]).double().mean(1) for scores in (others, members)]
    false, true = (torch.cat([torch.zeros(1, dtype=torch.float64), rate]) for rate in rates)
    return false, true


@dataclass(frozen=True)
class Uniformity:
    """Whether p-values of non-members are uniform (Kolmogorov and Smirnov).

    Attributes:
        distance: the largest between the two distributions of scores.
        p: of a distance so large or larger, were they the same.
    """

    distance: float
    p: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def uniformity(others: Tensor, reference: Tensor) -> Uniformity | None:
    """Whether images that are no members score as the reference does; None without such images.

    Their p-values all look at the same reference, so that they are not independent, and the test
    for one sample would find fault too often. The test for two samples, of the scores themselves,
    asks the same and is exact.
    """
    if not len(others) or not len(reference):
        return None
    from scipy.stats import ks_2samp

    found: Any = ks_2samp(others.cpu().numpy(), reference.cpu().numpy(), method="auto")
    return Uniformity(float(found.statistic), float(found.pvalue))
