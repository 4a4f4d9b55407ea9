"""Several reconstructions of the same images made one: what each got wrong in its own way, the
others vote down.

A search ends at one of many jagged minima near the truth, and from other dummies at another: their
errors are largely independent. Yin et al., See through Gradients (GradInversion), CVPR 2021, pull
searches from several seeds together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from simudy.errors import SimudyError

_ROUNDS = 10
_CLASS = 10.0  # how much farther apart than unrelated images, at 1, are dummies of two classes


def consensus(images: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The median of reconstructions, each matched to it dummy by dummy, and the labels that most of
    them have.

    Matching (Hungarian) is by class and by the angle between images, which no dummy gone astray
    outweighs: to the first reconstruction, then to the median of those matched, until that settles.
    The order is the first one's. Two are averaged; one is returned as it is.

    Args:
        images: normalised ``(n, c, h, w)`` each.
        labels: class indices ``(n,)`` each, or probabilities ``(n, classes)`` each.

    Raises:
        SimudyError: none are given, or they are not of the same number and shape.
    """
    likely = _likely(images, labels)
    middle, agreed, orders = images[0], likely[0], None
    for _ in range(_ROUNDS):
        before, orders = (
            orders,
            [_matched(middle, agreed, i, y) for i, y in zip(images, likely, strict=True)],
        )
        if before is not None and all(map(torch.equal, orders, before)):
            break
        middle = torch.stack([i[o] for i, o in zip(images, orders, strict=True)]).quantile(
            0.5, dim=0
        )
        agreed = torch.stack([y[o] for y, o in zip(likely, orders, strict=True)]).mean(0)
    return middle, agreed if labels[0].is_floating_point() else agreed.argmax(1)


def match_dummies(images: Tensor, labels: Tensor, other: Tensor, theirs: Tensor) -> Tensor:
    """Which dummy of the ``other`` reconstruction stands for each of ``images``: ``(n,)``, one to
    one, by class and angle.

    Raises:
        SimudyError: they are not of the same number and shape.
    """
    mine, yours = _likely([images, other], [labels, theirs])
    return _matched(images, mine, other, yours)


def _likely(images: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
    """Probabilities ``(n, classes)`` of reconstructions that fit each other."""
    kinds = {(i.shape, y.shape, y.is_floating_point()) for i, y in zip(images, labels, strict=True)}
    if len(kinds) != 1:
        raise SimudyError(
            "a consensus takes reconstructions of one number of images, one shape and one kind of "
            "labels"
        )
    if labels[0].is_floating_point():
        return list(labels)
    classes = 1 + max(int(y.max()) for y in labels)
    return [F.one_hot(y, classes).to(images[0]) for y in labels]


def _matched(middle: Tensor, agreed: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Which of ``images`` stands for each of ``middle``: ``(n,)``."""
    alike = F.normalize(middle.flatten(1)) @ F.normalize(images.flatten(1)).T
    apart = _CLASS * torch.cdist(agreed, labels).square() - alike
    return torch.as_tensor(linear_sum_assignment(apart.cpu().numpy())[1], device=images.device)
