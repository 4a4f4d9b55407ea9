"""KKT: the final weights alone, as a weighted sum of the margins' gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from simudy.attack.distance import Distance
from simudy.attack.evidence import Evidence
from simudy.attack.methods.weighted import Combination, Weighted
from simudy.dynamics.gradient import Loss
from simudy.dynamics.model import StatelessModel
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError
from simudy.ranges import FRACTION, NOT_NEGATIVE


@dataclass
class KKT(Weighted):
    """minimise ‖θf − Σ_i λ_i ∇margin_i(θf)‖²/‖θf‖² + box·outside(x̂) + hinge·Σ_i (λ_min − λ_i)₊²
    over x̂ and λ ≥ 0.

    margin_i = f(x̂_i)_y − max_{k≠y} f(x̂_i)_k. Needs no θ0. Its premise is a homogeneous network,
    started small and trained long past zero training error; a fine-tuned one does not meet it. The
    released code divides the sum by m (its λ is m times ours), nothing by ‖θf‖², smooths the ReLU's
    derivative, and runs SGD with momentum 0.9 on both.

    Reference: Haim et al., Reconstructing Training Data from Trained Neural Networks, NeurIPS 2022;
    multi-class: Buzaglo et al., NeurIPS 2023. Variables: ``latent``, ``weights``.

    Args:
        min_weight: λ_min: a dummy that takes no part is pushed to take some.
        hinge: the weight of that push.
    """

    weights: tuple[float, float] = (0.0, 1.0)
    euclidean_until: Annotated[float, FRACTION] = 1.0
    distance: str | Distance = "euclidean"
    tv: Annotated[float, NOT_NEGATIVE] = 0.0
    box: Annotated[float, NOT_NEGATIVE] = 1.0
    min_weight: Annotated[float, NOT_NEGATIVE] = 0.05
    hinge: Annotated[float, NOT_NEGATIVE] = 5.0

    def problem(self, evidence: Evidence, *, seed: int) -> Combination:
        """Dummies and λ drawn with ``seed``.

        Raises:
            SimudyError: images in a span (it is the displacement's, and needs θ0), or learned
                labels.
        """
        if self.images != "pixels":
            raise SimudyError(
                "kkt does not use the displacement, whose span this is: set KKT(images='pixels')"
            )
        if self.labels == "learned":
            raise SimudyError("a margin needs class indices: set KKT(labels='balanced')")
        return super().problem(evidence, seed=seed)

    def loss(self, evidence: Evidence) -> Loss:
        return negative_margin(evidence.model)

    def target(self, evidence: Evidence) -> Params:
        return evidence.final

    def penalty(self, weights: Tensor) -> Tensor:
        return self.hinge * (self.min_weight - weights).relu().square().sum()


def negative_margin(model: StatelessModel) -> Loss:
    """``(params, (images, labels, w)) -> −mean(w·margin)`` of logits ``(m, classes)``, two classes
    or more.
    """

    def loss(params: Params, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        images, labels, weights = batch
        logits = model(params, images)
        own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
        rival = logits.masked_fill(own, -torch.inf).amax(1)
        return -(weights * ((logits * own).sum(1) - rival)).mean()

    return loss
