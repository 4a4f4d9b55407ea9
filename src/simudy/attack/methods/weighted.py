"""What the one-shot methods share: no run is simulated, gradients at a few fixed points are
weighted and summed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from simudy.attack.coordinates import IMAGES, coordinates_named
from simudy.attack.distance import Distance, distance_named
from simudy.attack.dummy import Dummy, known_count, new_dummy
from simudy.attack.evidence import Evidence
from simudy.attack.methods.problem import Method, Problem
from simudy.attack.prior import Term, pixel_range, prior, require_colours
from simudy.dynamics import tree
from simudy.dynamics.gradient import Gradient, Loss, Reverse
from simudy.dynamics.optim import SGD
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError
from simudy.ranges import DUMMIES, FRACTION, NOT_NEGATIVE, POSITIVE

Points = Callable[[], Sequence[Params]]


@dataclass
class Weighted(Method):
    """Settings of a method that matches Σ_points Σ_i λ_i ∇ℓ(f_point(x̂_i), y_i) to a target, over
    x̂ and λ.

    The first part of the search is in Euclidean distance, which sets the scale of λ, the rest in
    ``distance``. The two are on one scale (1 where nothing is explained, 0 where all is), so the
    best iterate by objective is a late one.

    Args:
        dummies: dummy images per training image; the surplus takes up what no image explains.
        n: number of training images. Default: the evidence's, or the rank of the span.
        images, decay: see ``coordinates``.
        labels, noise, start: see ``new_dummy``. Given labels ``(n,)`` are dealt out again to the
            surplus.
        weights: the initial λ are uniform in this range ``(low, high)``.
        euclidean_until: fraction of the iterations before ``distance`` takes over.
        distance: see ``Simudy``.
        tv: weight of the total variation of the normalised images.
        colour: of that of their colours alone, without grey (see ``colour_variation``).
        box: of the squared distance to the pixel range.
        term: what else is believed of images, a function of normalised ones. Default: nothing.
        gradient: how the gradients are differentiated.
    """

    dummies: Annotated[float, POSITIVE] = 2.0
    n: Annotated[int | None, DUMMIES] = None
    images: str = "pixels"
    decay: Annotated[float, NOT_NEGATIVE] = 1.5
    labels: str | Tensor = "balanced"
    noise: Annotated[float, NOT_NEGATIVE] = 0.5
    start: Tensor | None = None
    weights: tuple[float, float] = (-0.5, 0.5)
    euclidean_until: Annotated[float, FRACTION] = 0.12
    distance: str | Distance = "cosine"
    tv: Annotated[float, NOT_NEGATIVE] = 3.3e-5
    colour: Annotated[float, NOT_NEGATIVE] = 0.0
    box: Annotated[float, NOT_NEGATIVE] = 0.0
    term: Term | None = None
    gradient: Gradient = field(default_factory=Reverse)  # pyright: ignore[reportIncompatibleVariableOverride]

    POINTS: ClassVar[tuple[str, ...]] = ("final",)  # where in the evidence gradients are taken

    def __post_init__(self) -> None:
        low, high = self.weights
        self.weights = (low, high)
        distance_named(self.distance)
        if self.images not in IMAGES:
            raise SimudyError(f"no image mode {self.images!r}: choose from {', '.join(IMAGES)}")
        if self.dummies <= 0:
            raise SimudyError(
                f"Method(dummies={self.dummies}): give the dummies per training image, e.g. 2"
            )

    def problem(self, evidence: Evidence, *, seed: int) -> Combination:
        """Dummies and λ drawn with ``seed``.

        Raises:
            SimudyError: a setting does not fit the evidence.
        """
        generator = torch.Generator().manual_seed(seed)
        evidence, dummy = self.begin(evidence, generator)
        weights = self.new_weights(len(self.POINTS), dummy, generator)
        return Combination(
            self,
            evidence,
            dummy,
            weights=weights,
            extra={"weights": weights},
            points=lambda: [getattr(evidence, name) for name in self.POINTS],
            loss=self.loss(evidence),
            target=self.target(evidence),
            penalty=lambda: self.penalty(weights),
        )

    def loss(self, evidence: Evidence) -> Loss:
        """``(params, (images, labels, w)) -> mean(w·loss_i)``. Default: the victim's."""
        return evidence.model.loss

    def target(self, evidence: Evidence) -> Params:
        """What the sum is to equal. Default: θf − θ0."""
        return evidence.displacement

    def penalty(self, weights: Tensor) -> Tensor | float:
        """On λ ``(points, m)``, a scalar. Default: none."""
        return 0.0

    def begin(self, evidence: Evidence, generator: torch.Generator) -> tuple[Evidence, Dummy]:
        """The evidence, in the span's coordinates if asked for, and fresh dummies.

        Raises:
            SimudyError: the number of images is unknown, or a setting does not fit the evidence.
        """
        if evidence.checkpoints:
            raise SimudyError(
                "only a simulated run uses what is known from inside it: use Simudy(), or "
                "leave Evidence(checkpoints=…) out"
            )
        if self.colour:
            require_colours(evidence.shape)
        coordinates = coordinates_named(self.images, evidence, decay=self.decay)
        n = known_count(evidence, coordinates) if self.n is None else self.n
        if n < 1:
            raise SimudyError(f"Method(n={n}): give 1 or more, or None for what the evidence says")
        m, labels = max(1, round(self.dummies * n)), self.labels
        if isinstance(labels, Tensor) and len(labels) == n:
            labels = labels[torch.arange(m) % n]
        options = {
            "labels": labels,
            "noise": self.noise,
            "start": self.start,
            "generator": generator,
        }
        return coordinates.reduced(evidence), new_dummy(
            evidence, coordinates=coordinates, n=m, **options
        )

    def new_weights(self, points: int, dummy: Dummy, generator: torch.Generator) -> Tensor:
        """The initial λ ``(points, m)``: a leaf."""
        low, high = self.weights
        drawn = low + (high - low) * torch.rand(points, len(dummy.latent), generator=generator)
        return drawn.to(dummy.latent).requires_grad_()


@dataclass
class Combination(Problem):
    """minimise d(−Σ_points Σ_i λ_i ∇loss_i, target) + tv·TV(x̂) + box·outside(x̂) + penalty; see
    ``Problem``.

    Args:
        loss: ``(params, (images, labels, w)) -> mean(w·loss_i)``.
        points: where the gradients are taken.
        weights: λ ``(points, m)``.
        extra: what moves beside the dummy, by name.
        target: what is explained.
    """

    settings: Weighted
    evidence: Evidence
    dummy: Dummy
    weights: Tensor
    extra: dict[str, Tensor]
    points: Points
    loss: Loss
    target: Params
    penalty: Callable[[], Tensor | float] = lambda: 0.0

    def __post_init__(self) -> None:
        self.pixels = pixel_range(self.evidence.mean, self.evidence.std, like=self.weights)

    def variables(self) -> dict[str, Tensor]:
        return {**self.dummy.variables(), **self.extra}

    def objective(self, progress: float) -> tuple[Tensor, Tensor]:
        s = self.settings
        now = "euclidean" if progress < s.euclidean_until else s.distance
        distance = distance_named(now)(self.combined(), self.target)
        believed = prior(self.dummy.images, self.pixels, settings=s)
        return distance + believed + self.penalty(), distance

    def combined(self) -> Params:
        """−Σ_points Σ_i λ_i ∇loss_i: where descending the weighted losses leads."""
        each = [self._gradient(at, w) for at, w in zip(self.points(), self.weights, strict=True)]
        zero = {k: torch.zeros_like(v) for k, v in self.target.items()}  # of what no loss touches
        return {**zero, **tree.scale(-1.0, reduce(tree.add, each))}

    def restore(self, images: Tensor, labels: Tensor, learned: dict[str, Tensor]) -> None:
        self.dummy.restore(images, labels, learned)

    def images(self) -> Tensor:
        return self.dummy.images()

    def labels(self) -> Tensor:
        return self.dummy.targets()

    def _gradient(self, at: Params, weights: Tensor) -> Params:
        # A sum of weighted gradients is the gradient of the weighted sum: one backward pass,
        # whatever m.
        batch = (self.dummy.network_inputs(), self.dummy.targets(), len(weights) * weights)
        params, grads = self.settings.gradient.bind(self.loss, at, [batch], [SGD()])
        return grads(params, batch)
