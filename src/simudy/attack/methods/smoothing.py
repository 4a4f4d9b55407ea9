"""How round the ReLUs of the simulated run are, and when."""

from __future__ import annotations

import math

import torch

from simudy.attack.evidence import Evidence
from simudy.dynamics.model.smoothed import Smoothed
from simudy.errors import SimudyError

_STAGES = 10  # values of σ: each is an objective of its own, which the best is chosen by


def falling(first: float, last: float) -> tuple[float, float]:
    """σ at first and in the end.

    Raises:
        SimudyError: they are not positive, or rise.
    """
    if not 0 < last <= first < math.inf:
        raise SimudyError(
            f"Simudy(smooth={[first, last]}): give σ at first and in the end, as [0.3, 0.03]"
        )
    return first, last


def sigma_at(smooth: tuple[float, float] | None, progress: float) -> float:
    """σ at ``progress`` in [0, 1] through the iterations, falling by equal factors; 0: sharp."""
    if smooth is None:
        return 0.0
    first, last = smooth
    stage = min(int(progress * _STAGES), _STAGES - 1)
    return first * (last / first) ** (stage / (_STAGES - 1))


def require_relu(evidence: Evidence, smooth: tuple[float, float]) -> None:
    """Refuse to smooth what has no ReLU.

    Raises:
        SimudyError: the network gives the same with and without.
    """
    like = next(iter(evidence.initial.values()))
    images = torch.ones(2, *evidence.shape, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        sharp = evidence.model(evidence.initial, images)
        with Smoothed(smooth[0]):
            soft = evidence.model(evidence.initial, images)
    if torch.equal(sharp, soft):
        raise SimudyError(
            f"Simudy(smooth={list(smooth)}) rounds off ReLUs, and the network calls none: set "
            "Simudy(smooth=None)"
        )
