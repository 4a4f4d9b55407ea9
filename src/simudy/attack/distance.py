"""How far a simulated displacement is from the real one. All are zero where they agree; inputs are
dicts of tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from simudy.dynamics import tree
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


def cosine(simulated: Params, real: Params) -> Tensor:
    """1 − cos of the angle between the flattened displacements: in [0, 2], blind to length.
    Equation of d in the paper (SimuDy, Tian et al., ICLR 2025).

    A displacement of zero has no direction; its distance is 1, as at a right angle.

    Args:
        simulated: θ̂f − θ0, by name.
        real: θf − θ0, by name.
    """
    lengths = tree.norm(simulated) * tree.norm(real)
    return 1 - tree.dot(simulated, real) / torch.where(lengths == 0, 1.0, lengths)


def euclidean(simulated: Params, real: Params) -> Tensor:
    """Relative squared error ‖simulated − real‖² / ‖real‖²: 1 where nothing moved.

    Args:
        simulated: θ̂f − θ0, by name.
        real: θf − θ0, by name.
    """
    residual = tree.sub(simulated, real)
    return tree.dot(residual, residual) / tree.dot(real, real)


def layerwise(simulated: Params, real: Params) -> Tensor:
    """Mean over tensors of 1 − cos: every layer counts alike, however little it moved."""
    each = [
        cosine({name: simulated[name]}, {name: real[name]})
        for name in real
        if bool((real[name] != 0).any())
    ]
    return torch.stack(each).mean()


def position(simulated: Params, real: Params) -> Tensor:
    """1 − cos of the position embedding alone, the parameter called ``position``: where an image's
    patches belong.

    Raises:
        SimudyError: the model has no such parameter.
    """
    names = [name for name in real if name.rpartition(".")[2] == "position"]
    if not names:
        raise SimudyError("the model has no parameter called position: set Simudy(position=0)")
    return cosine({name: simulated[name] for name in names}, {name: real[name] for name in names})


Distance = Callable[[Params, Params], Tensor]
DISTANCES: dict[str, Distance] = {"cosine": cosine, "euclidean": euclidean, "layerwise": layerwise}


def distance_named(distance: str | Distance) -> Distance:
    """A distance by its name; one of your own is what it is.

    Raises:
        SimudyError: there is none of this name.
    """
    if callable(distance):
        return distance
    if distance not in DISTANCES:
        raise SimudyError(f"no distance {distance!r}: choose from {', '.join(DISTANCES)}")
    return DISTANCES[distance]
