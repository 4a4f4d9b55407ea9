"""What learned labels are: numbers without bounds, and the targets that a loss makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from simudy.attack.evidence import Evidence
from simudy.dynamics.model.criterion import PerSample


@dataclass(frozen=True)
class Link:
    """From what the outer loop moves to targets, and back.

    Attributes:
        targets: ``(n, …) -> (n, …)``, differentiable.
        latent: its inverse.
    """

    targets: Callable[[Tensor], Tensor]
    latent: Callable[[Tensor], Tensor]


def _softmax(latent: Tensor) -> Tensor:
    return latent.softmax(1)


def _log(targets: Tensor) -> Tensor:
    return targets.clamp(min=torch.finfo(targets.dtype).eps).log()


def _logit(targets: Tensor) -> Tensor:
    return targets.logit(eps=torch.finfo(targets.dtype).eps)


def _itself(values: Tensor) -> Tensor:
    return values


SOFTMAX = Link(_softmax, _log)  # probabilities of classes
SIGMOID = Link(torch.sigmoid, _logit)  # of several labels, each by itself
REAL = Link(_itself, _itself)


def link_of(evidence: Evidence) -> tuple[Link, tuple[int, ...]]:
    """What the targets of a network's loss are, and the shape of one image's."""
    criterion, classes = evidence.model.given_criterion, evidence.classes
    alone = isinstance(criterion, PerSample) and criterion.independent
    if classes > 1 and not alone:
        return SOFTMAX, (classes,)
    outputs = _outputs(evidence)
    if classes > 1 and outputs != (classes,):  # one logit: the probability of the second class
        return SOFTMAX, (classes,)
    return SIGMOID if alone else REAL, outputs


@torch.no_grad()
def _outputs(evidence: Evidence) -> tuple[int, ...]:
    """The shape of what the network puts out for one image; two, for a BatchNorm in train mode."""
    first = next(iter(evidence.initial.values()))
    images = first.new_zeros(2, *evidence.shape)
    return tuple(evidence.model(evidence.initial, images).shape[1:]) or (1,)
