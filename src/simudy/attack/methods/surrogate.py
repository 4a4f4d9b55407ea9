"""Surrogate: the displacement as one plain gradient, at a point between the two ends of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from simudy.attack.evidence import Evidence
from simudy.attack.methods.weighted import Combination, Weighted
from simudy.dynamics import tree
from simudy.errors import SimudyError
from simudy.ranges import FRACTION, NOT_NEGATIVE, POSITIVE


@dataclass
class Surrogate(Weighted):
    """minimise d(−mean_i ∇ℓ(f_θα(x̂_i), y_i), θf − θ0) + tv·TV + box·outside, θα = (1−α)θ0 + αθf,
    over x̂ and α.

    Zhu, Yao & Blaschko, Surrogate Model Extension (SME), ICML 2023: one gradient per outer step, so
    up to 100 times cheaper than a simulated run. There α and x̂ are clipped to their ranges after
    each step and labels are known; here α is the sigmoid of the variable ``alpha`` (a step size of
    4e-3 is their 1e-3 at α = ½), the range of x̂ a penalty. ``weights`` are not used. Variables:
    ``latent``, ``alpha``.

    Args:
        alpha: α at first, in [0, 1]; at 0 or 1 it is not learned.
    """

    dummies: Annotated[float, POSITIVE] = 1.0
    noise: Annotated[float, NOT_NEGATIVE] = 1.0
    euclidean_until: Annotated[float, FRACTION] = 0.0
    tv: Annotated[float, NOT_NEGATIVE] = 0.01
    box: Annotated[float, NOT_NEGATIVE] = 1.0
    alpha: Annotated[float, FRACTION] = 0.5

    def problem(self, evidence: Evidence, *, seed: int) -> Combination:
        """Dummies drawn with ``seed``.

        Raises:
            SimudyError: α is outside [0, 1], or a setting does not fit the evidence.
        """
        if not 0 <= self.alpha <= 1:
            raise SimudyError(
                f"Surrogate(alpha={self.alpha}): give a point between θ0 and θf, in [0, 1]"
            )
        evidence, dummy = self.begin(evidence, torch.Generator().manual_seed(seed))
        m = len(dummy.latent)
        alpha = torch.logit(dummy.latent.new_tensor(self.alpha))
        return Combination(
            self,
            evidence,
            dummy,
            weights=dummy.latent.new_full((1, m), 1 / m),
            extra={"alpha": alpha.requires_grad_()} if 0 < self.alpha < 1 else {},
            points=lambda: [between(evidence, alpha.sigmoid())],
            loss=evidence.model.loss,
            target=evidence.displacement,
        )


def between(evidence: Evidence, alpha: Tensor) -> tree.Params:
    """(1−α)θ0 + αθf."""
    return tree.add(tree.scale(1 - alpha, evidence.initial), tree.scale(alpha, evidence.final))
