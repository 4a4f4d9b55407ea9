"""What stands between the weights and the images, by figures: why a reconstruction may fall short.

Everything here is read off the evidence alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from simudy.attack.checkpoints.findings import rounding_variance, spacing
from simudy.attack.evidence import Evidence

_COARSE = 0.01  # of the displacement's norm: beyond it rounding is worth a word


def limits(evidence: Evidence, *, n: int | None = None, numbers: int | None = None) -> list[str]:
    """One sentence for each known reason, none where the weights should determine the images.

    Args:
        n: number of images. Default: what the evidence says.
        numbers: what ``independent_numbers`` gave, a decomposition of every layer. Default: it is
            asked.
    """
    counted = _counted(evidence, n or evidence.n, numbers)
    return [*counted, *_rounding(evidence), *_norms(evidence)]


def independent_numbers(evidence: Evidence) -> int:
    """Of the displacement θf − θ0: r·(rows + columns − r) for a weight whose displacement has rank
    r beyond rounding, every entry of a vector.
    """
    pairs = ((moved, evidence.final[k]) for k, moved in evidence.displacement.items())
    return sum(_numbers(moved, spacing(final, evidence.published)) for moved, final in pairs)


def rounding_share(evidence: Evidence) -> float:
    """The norm of what rounding to the published precision changed, expected, over that of θf − θ0.

    Both ends are rounded.
    """
    ends = (held for which in (evidence.initial, evidence.final) for held in which.values())
    noise = sum(float(rounding_variance(weights, evidence.published).sum()) for weights in ends)
    return math.sqrt(noise) / _norm(evidence)


def _counted(evidence: Evidence, n: int | None, numbers: int | None) -> Iterator[str]:
    if n is None:
        return
    known = independent_numbers(evidence) if numbers is None else numbers
    unknown = n * math.prod(evidence.shape)
    if known < unknown:
        yield (
            f"the weights moved by {known:,} independent numbers and {n} images have {unknown:,} "
            "pixels: the weights do not determine them, and priors fill in the rest"
        )


def _rounding(evidence: Evidence) -> Iterator[str]:
    if evidence.precision is None:
        return
    share = rounding_share(evidence)
    if share > _COARSE:
        yield (
            f"rounding to {evidence.precision} is {share:.1%} of the displacement: a cosine "
            f"distance below {share**2 / 2:.0e} says nothing"
        )


def _norms(evidence: Evidence) -> Iterator[str]:
    layers = [m for m in evidence.model.module.modules() if isinstance(m, _NormBase)]
    if any(layer.training for layer in layers):
        yield (
            "norms in train mode take away each batch's mean and scale: brightness and contrast "
            "common to a batch leave little trace"
        )


def _numbers(moved: Tensor, steps: Tensor) -> int:
    if moved.ndim < 2:
        return int((moved != 0).sum())
    matrix = moved.double().flatten(1)
    rows, columns = matrix.shape
    # random entries of this size have singular values up to about (√rows + √columns) of it
    noise = float(steps.square().mean().sqrt()) * (math.sqrt(rows) + math.sqrt(columns))
    rank = int((torch.linalg.svdvals(matrix) > noise).sum())
    return rank * (rows + columns - rank)


def _norm(evidence: Evidence) -> float:
    squares = (float(v.double().square().sum()) for v in evidence.displacement.values())
    return math.sqrt(sum(squares))
