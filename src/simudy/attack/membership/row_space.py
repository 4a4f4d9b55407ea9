"""The row space of a layer's displacement, and which layer to ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simudy.attack.checkpoints.findings import rounding_variance
from simudy.attack.evidence import Evidence
from simudy.attack.first_layer.span import CLEARLY, without_gradients
from simudy.attack.membership.layer_inputs import Layer
from simudy.errors import SimudyError


class NoPower(SimudyError):
    """The displacement fills every layer's input space: it holds no image more than another."""


@dataclass(frozen=True)
class RowSpace:
    """Where the vectors lie that moved a layer: ΔW = Σ δ pᵀ has its rows in their span.

    Attributes:
        layer: whose.
        basis: orthonormal rows ``(groups, capacity, size)``, those beyond a group's rank zero.
        rank: over all groups.
    """

    layer: Layer
    basis: Tensor
    rank: int

    @property
    def room(self) -> int:
        """Dimensions that nothing moved: 0 where the row space is everything."""
        return self.layer.groups * self.layer.size - self.rank


def ranked(layers: Sequence[Layer], n: int | None) -> list[Layer]:
    """The layers by how much their row spaces are expected to tell; fixed by counting alone.

    First those whose displacement can hold all ``n`` images' vectors (n·spots < capacity), fewest
    spots first. Then those whose row space cannot be everything (size > capacity), by spots over
    capacity. Then the rest. The layer called last comes last: its displacement has no more
    directions than there are classes. Ties: the one that is called first.

    Args:
        layers: in the order in which they are called.
        n: number of training images, or None where it is unknown.
    """

    def key(layer: Layer) -> tuple[float, float]:
        per_dimension = layer.spots / layer.capacity
        if layer is layers[-1]:
            return 3, 0
        if n is not None and n * layer.spots < layer.capacity:
            return 0, layer.spots
        return (1 if layer.size > layer.capacity else 2), per_dimension

    return sorted(layers, key=key)


def choose(evidence: Evidence, layers: Sequence[Layer]) -> RowSpace:
    """The row space of the first layer of ``ranked`` whose row space is not everything.

    Raises:
        SimudyError: no layer that can be asked was trained.
        NoPower: all row spaces are everything.
    """
    trained = [layer for layer in layers if _moved(evidence, layer)]
    if not trained:
        raise SimudyError(
            "no convolution or linear layer moved from its place, so that none tells of its "
            "inputs: give weights of a run that trained one"
        )
    for layer in ranked(trained, evidence.n):
        space = row_space(evidence, layer)
        if space.rank and space.room:
            return space
    raise NoPower(
        "the displacement of every layer fills its inputs' space, or is lost in rounding: row "
        "spaces tell nothing here, so use the loss, or a victim of fewer images"
    )


def row_space(evidence: Evidence, layer: Layer) -> RowSpace:
    """What of a layer's displacement stands out of the rounding of its weights.

    Where the weight would have gone without gradients (weight decay) is taken off first.
    """
    moved = evidence.final[layer.weight] - without_gradients(evidence, layer.weight)
    matrix = moved.detach().double().reshape(layer.groups, layer.out, layer.size)
    _, values, rows = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > CLEARLY * noise(evidence, layer)  # (groups, capacity)
    return RowSpace(layer, rows * kept[..., None], int(kept.sum()))


def noise(evidence: Evidence, layer: Layer) -> float:
    """The largest singular value that rounding alone leaves in a group's displacement.

    Errors are uniform within half a spacing, and independent: the edge of their spectrum is
    σ(√out + √size) (Marchenko and Pastur, 1967). Weights that were published rounded are rounded
    once at each end; a run in its own precision rounds at every step.
    """
    ends = evidence.initial[layer.weight], evidence.final[layer.weight]
    variance = sum(float(rounding_variance(w, evidence.published).mean()) for w in ends)
    steps = evidence.recipe.steps(evidence.n or 1) if evidence.precision is None else 1
    return (variance * steps) ** 0.5 * (layer.out**0.5 + layer.size**0.5)


def _moved(evidence: Evidence, layer: Layer) -> bool:
    ends = [held.get(layer.weight) for held in (evidence.initial, evidence.final)]
    return ends[0] is not None and ends[1] is not None and not torch.equal(ends[0], ends[1])
