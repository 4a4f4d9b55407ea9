"""One step: the whole displacement as one weighted sum of gradients at the final weights."""

from __future__ import annotations

from dataclasses import dataclass

from simudy.attack.methods.weighted import Weighted


@dataclass
class OneStep(Weighted):
    """minimise d(−Σ_i λ_i ∇ℓ(f_θf(x̂_i), y_i), θf − θ0) + tv·TV(x̂) over x̂ and λ: exact where
    gradients keep still.

    Buzaglo et al., Deconstructing Data Reconstruction, NeurIPS 2023, as run in the comparison of
    Tian et al., ICLR 2025: 2n dummies, squared distance in five stages until 12% of 100,000
    iterations, then 30·(1 − cos) + 1e-3·TV. The stages' factors vanish under Adam, which is blind
    to scale, so they are not here and ``tv`` is 1e-3/30. λ had SGD (lr 1e-6, momentum 0.9); here it
    shares the outer optimizer with a step size of its own, ``outer.lrs.weights``. A run with
    constant η has λ_i near η·epochs/batch_size, far below U(−½, ½): starting there, say from
    ``weights=(0, 0.1)``, makes a stronger baseline than the published one. Variables: ``latent``,
    ``weights``.
    """
