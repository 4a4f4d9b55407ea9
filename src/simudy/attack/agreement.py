"""Do independent searches agree on an image, beyond what unrelated dummies agree?

Two searches from noise of their own have nothing in common but the evidence. Where both end at the
same image it came from there; where each ends at a mixture of its own, or at what any image of the
class looks like, their dummies are no more alike than dummies that stand for different images. How
alike those are is in the same searches, so that no image of anybody's is needed to tell.

What agreement does not say: that the image is right. Searches can share a mistake, a mixture of two
images that the weights hold equally well, say. ``docs/results/verdicts.md`` has how often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simudy.attack.consensus import match_dummies
from simudy.errors import SimudyError

_FEWEST = 3  # dummies: of two, the mean taken away leaves one and its mirror image


@dataclass(frozen=True)
class Agreement:
    """How far each dummy of the first search is confirmed by the others.

    Attributes:
        cosines: ``(n,)``, in [−1, 1]: with its partner in another search, the middle over these.
        p_values: ``(n,)``, in (0, 1]: share of unrelated pairs that are at least as alike.
        partners: ``(searches − 1, n)``, which dummy of each other search is meant.
        unrelated: ``(searches · n,)``, ascending: the most alike that a dummy, of any of the
            searches, is to one that is not its partner, the middle over the other searches.
    """

    cosines: Tensor
    p_values: Tensor
    partners: Tensor
    unrelated: Tensor

    def consistent(self, *, false_rate: float) -> Tensor:
        """``(n,)`` bool: more alike than all but ``false_rate`` of unrelated pairs.

        Raises:
            SimudyError: there are too few pairs to tell so small a share.
        """
        if false_rate * (len(self.unrelated) + 1) < 1:
            raise SimudyError(
                f"{len(self.unrelated)} unrelated pairs tell no share of {false_rate:g}: give more "
                f"searches, or a rate of {1 / (len(self.unrelated) + 1):.2g} or more"
            )
        return self.p_values <= false_rate


def agreement(images: Sequence[Tensor], labels: Sequence[Tensor]) -> Agreement:
    """Of the first search with the others: matched by class and angle, compared by the angle.

    Angles are between images less the mean of their search, so that what all images have in common
    counts for nothing. A partner is sought in its class alone, what is unrelated in all classes,
    among more dummies: the comparison leans to the cautious side. The p-value is that of a rank
    among the unrelated (conformal prediction: Vovk, Gammerman and Shafer, 2005).

    Args:
        images: normalised ``(n, c, h, w)`` of each search.
        labels: class indices ``(n,)`` or probabilities ``(n, classes)`` of each.

    Raises:
        SimudyError: fewer than two searches or three dummies, or searches of unlike shapes.
    """
    if len(images) < 2 or len(images[0]) < _FEWEST:
        raise SimudyError(
            f"{len(images)} searches of {len(images[0]) if images else 0} dummies cannot be "
            f"compared: give two searches or more, of {_FEWEST} dummies or more"
        )
    pairs = [_with_all(k, images, labels) for k in range(len(images))]
    unrelated = torch.cat([others for _, others, _ in pairs]).sort().values
    cosines, _, partners = pairs[0]
    above = len(unrelated) - torch.searchsorted(unrelated, cosines)
    return Agreement(cosines, (1 + above) / (1 + len(unrelated)), partners, unrelated)


def _with_all(
    k: int, images: Sequence[Tensor], labels: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of search ``k`` with each other: cosines with partners and, at most, with others, both the
    middle over the searches ``(n,)``; and the partners.
    """
    found = [
        _with_one(images[k], labels[k], other, theirs)
        for j, (other, theirs) in enumerate(zip(images, labels, strict=True))
        if j != k
    ]
    cosines, others, partners = (torch.stack(column) for column in zip(*found, strict=True))
    return cosines.quantile(0.5, dim=0), others.quantile(0.5, dim=0), partners


def _with_one(
    images: Tensor, labels: Tensor, other: Tensor, theirs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    alike = _centred(images) @ _centred(other).T
    partners = match_dummies(images, labels, other, theirs)[:, None]
    others = alike.scatter(1, partners, -torch.inf).max(1).values
    return alike.gather(1, partners)[:, 0], others, partners[:, 0]


def _centred(images: Tensor) -> Tensor:
    return F.normalize((images - images.mean(0)).flatten(1).double())
