"""Was an image among those trained on? By how little of it lies outside the row space of a layer's
displacement.

The weight of a layer moves by products δ pᵀ of errors and the vectors p that it multiplies, so that
the rows of its displacement lie in the span of the training images' vectors (DAGER, Petrov et al.,
2024, uses that of one gradient to find words). One singular value decomposition and one forward
pass at either end of the run decide; neither recipe nor simulation is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simudy import stopping
from simudy.attack.evidence import Evidence
from simudy.attack.membership.layer_inputs import Layer, Probe
from simudy.attack.membership.metric import RIDGE, Whitening
from simudy.attack.membership.row_space import RowSpace, choose
from simudy.errors import SimudyError

BATCH = 64  # images of a forward pass
_LEAST = 1e-15  # a share below float64's rounding


@dataclass(frozen=True)
class _End:
    """The network at θ0 or θf, with the row space in the metric of its public vectors."""

    probe: Probe
    metric: Whitening
    basis: Tensor  # (groups, capacity, size)


@dataclass(frozen=True)
class RowSpaceTest:
    """A score of images, fixed before any of them is seen.

    Example:
        test = RowSpaceTest.of(evidence, public)
        test.scores(candidates)  # high: trained on

    Attributes:
        space: the row space that decides.
    """

    space: RowSpace
    ends: tuple[_End, ...]

    @classmethod
    def of(cls, evidence: Evidence, public: Tensor, *, ridge: float = RIDGE) -> RowSpaceTest:
        """Choose the layer and fit the metric.

        Args:
            public: normalised images ``(m, c, h, w)`` that are no candidates, and not those that
                p-values are taken against.
            ridge: of the metric (see ``Whitening``); 1e9 leaves energy as it is.

        Raises:
            SimudyError: images and model do not fit, or no layer was trained.
            NoPower: row spaces tell nothing.
        """
        _require_shape(public, evidence)
        probes = [Probe(evidence, held, public) for held in (evidence.initial, evidence.final)]
        space = choose(evidence, probes[0].layers(public[:2]))
        return cls(space, tuple(_end(probe, space, public, ridge) for probe in probes))

    @property
    def layer(self) -> Layer:
        """That is asked."""
        return self.space.layer

    def outside(self, images: Tensor) -> Tensor:
        """The share of each image's energy at the layer outside the row space, ``(n, 2)`` at θ0 and
        θf, in the metric of public vectors.
        """
        parts = images.split(BATCH)
        return torch.cat([self._of_batch(part) for part in parts]) if parts else torch.empty(0, 2)

    def scores(self, images: Tensor) -> Tensor:
        """``(n,)``, −log10 of the geometric mean of both shares: 0 and up, high for members."""
        return -self.outside(images).clamp(min=_LEAST).log10().mean(1)

    def _of_batch(self, images: Tensor) -> Tensor:
        stopping.check()
        return torch.stack([_share(end, self.layer, images) for end in self.ends], 1)


def _end(probe: Probe, space: RowSpace, public: Tensor, ridge: float) -> _End:
    parts = [probe.vectors(space.layer, part) for part in public.split(BATCH)]
    metric = Whitening.of(torch.cat(parts).transpose(0, 1).flatten(1, 2), ridge=ridge)
    basis = space.basis
    within = torch.linalg.qr(metric(basis).mT)[0].mT  # columns beyond the rank are no basis
    return _End(probe, metric, within * basis.any(-1, keepdim=True))


def _share(end: _End, layer: Layer, images: Tensor) -> Tensor:
    vectors = end.metric(end.probe.vectors(layer, images).double())  # (n, groups, spots, size)
    rest = vectors - (vectors @ end.basis.mT) @ end.basis
    whole = vectors.square().sum((1, 2, 3))
    return torch.where(whole > 0, rest.square().sum((1, 2, 3)) / whole, 1.0)


def _require_shape(images: Tensor, evidence: Evidence) -> None:
    if images.shape[1:] != evidence.shape or len(images) < 2:
        raise SimudyError(
            f"public images have shape {tuple(images.shape)}: give two or more of "
            f"{tuple(evidence.shape)}"
        )
