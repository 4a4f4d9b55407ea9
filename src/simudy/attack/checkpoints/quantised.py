"""Weights that were int8 once: they lie on evenly spaced levels, by row or by tensor."""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 256
_FEWEST = 16  # entries: fewer may lie on levels by chance
_OFF = 0.05  # of a step: what float32 leaves of 255 of them
_PARTS = 8  # of the smallest gap: few values need not lie on neighbouring levels


def grid_step(weights: Tensor) -> Tensor | None:
    """The distance between the levels that ``weights`` lie on, one for all ``(1, …)`` or one a row
    ``(rows, 1, …)``; None where they lie on none, or are no matrix.
    """
    if weights.ndim < 2 or weights.numel() < _FEWEST:
        return None
    flat = weights.double().flatten(1)
    shape = [-1, *[1] * (weights.ndim - 1)]
    if (step := _step(flat.flatten()[None])) is not None:
        return step.reshape(shape)
    by_row = _step(flat) if flat.shape[1] >= _FEWEST else None
    return None if by_row is None else by_row.reshape(shape)


def _step(rows: Tensor) -> Tensor | None:
    """The step of each row's levels ``(rows,)``: its smallest gap, or a whole part of it, of which
    all its values are multiples, up to a shift.
    """
    ordered = rows.sort(1).values
    gaps, span = ordered.diff(dim=1), ordered[:, -1] - ordered[:, 0]
    if not bool((span > 0).all()):
        return None
    gaps = torch.where(gaps > 1e-6 * span[:, None], gaps, torch.inf)  # the same level
    steps = torch.full_like(span, torch.inf)
    for part in reversed(range(1, _PARTS + 1)):
        step = gaps.amin(1) / part
        places = (ordered - ordered[:, :1]) / step[:, None]
        on = ((places - places.round()).abs() <= _OFF).all(1) & (places[:, -1] < _LEVELS - 0.5)
        steps = torch.where(on, step, steps)
    return steps if bool(steps.isfinite().all()) else None
