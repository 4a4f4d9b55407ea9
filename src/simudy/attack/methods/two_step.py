"""Two steps: the displacement as weighted sums of gradients at both ends of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from simudy.attack.methods.one_step import OneStep


@dataclass
class TwoStep(OneStep):
    """minimise d(−Σ_i λ_i ∇ℓ(f_θ0(x̂_i), y_i) − Σ_i λ'_i ∇ℓ(f_θf(x̂_i), y_i), θf − θ0) + tv·TV(x̂)
    over x̂, λ and λ'.

    Loo et al., Understanding Reconstruction Attacks with the Neural Tangent Kernel, ICLR 2024, as
    run in the comparison of Tian et al., ICLR 2025; all else as ``OneStep``. The variable ``weights
    (2, m)`` holds λ and λ'.
    """

    POINTS: ClassVar[tuple[str, ...]] = ("initial", "final")
