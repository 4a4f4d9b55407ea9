"""SimuDy: simulate the run on dummies, and move them until the simulated run lands on the real
weights.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import reduce
from typing import Annotated, Any

import torch
from torch import Tensor

from simudy.attack.checkpoints.segments import Segment, segments
from simudy.attack.coordinates import Coordinates, SpanCoordinates, coordinates_named
from simudy.attack.distance import Distance, distance_named, position
from simudy.attack.dummy import Dummy, new_dummy
from simudy.attack.evidence import Evidence
from simudy.attack.first_layer.influence import FirstLayer, solve
from simudy.attack.methods.problem import Method, Problem
from simudy.attack.methods.smoothing import falling, require_relu, sigma_at
from simudy.attack.prior import Term, pixel_range, prior, require_colours
from simudy.dynamics import tree
from simudy.dynamics.adjoint import Adjoint, Direct
from simudy.dynamics.gradient import Factored, Gradient, Loss, Reverse
from simudy.dynamics.gradient.compact import compact
from simudy.dynamics.model.smoothed import SmoothedLoss
from simudy.dynamics.optim import Clipped, Rule
from simudy.dynamics.optim.hyperparameters import scale_hyperparameters
from simudy.dynamics.recipe import Recipe
from simudy.dynamics.simulate import simulate
from simudy.errors import SimudyError
from simudy.ranges import DUMMIES, FRACTION, NOT_NEGATIVE, POSITIVE

# root mean square of a Gauss-Newton step, in normalised pixels: beyond it the frozen D̂ says
# nothing
_TRUST = 1.0


@dataclass
class Simudy(Method):
    """minimise d(θ̂f − θ0, θf − θ0) + tv·TV(x̂) + box·outside(x̂) over the dummies x̂ (Tian et al.,
    ICLR 2025).

    Where the evidence has checkpoints, d is the sum over the segments between them, each simulated
    from its known start with the optimizer state that the one before was simulated to leave
    (multiple shooting, Bock & Plitt, IFAC 1984, with known nodes); the distance that is reported is
    their mean.

    Args:
        distance: ``cosine``, ``euclidean`` or ``layerwise``, or a function ``(simulated, real)``
            of two displacements.
        position: weight of the distance between the displacements of the position embedding alone,
            for transformers.
        tv: weight of the total variation of the normalised images.
        colour: of that of their colours alone, without grey (see ``colour_variation``).
        box: weight of the squared distance to the pixel range.
        term: what else is believed of images, a function of normalised ones. Default: nothing.
        images: ``pixels``, ``frequencies``, ``span`` where the first layer is linear, ``tokens``
            where images are texts, or ``auto``: what fits (see ``coordinates``).
        decay: of the expected amplitude with frequency.
        labels, noise, start, learn, n: see ``new_dummy``.
        recipe: the attacker's guess of the run. Default: the evidence's.
        clip_above: clip a simulated gradient whose norm is above this (released code: 20).
            Default: never.
        clip_to: the norm it is clipped to (released code: 5).
        clip_until: clip during this first part of the iterations.
        damping: with ``images="span"``, turn the gradient into a Gauss-Newton step (see
            ``FirstLayer``), damped by this fraction of the mean curvature; then the outer optimizer
            is SGD with ``lr`` near 0.3. Default: off.
        grow_until: over this first part of the iterations the simulated horizon grows, from a
            quarter of the steps on. A shorter run takes proportionally longer steps, so that it
            lands about where the whole one does. Default: all steps from the first iteration on.
        smooth: ``(first, last)``: σ of the simulation's ReLUs (see ``Smoothed``), falling over the
            iterations in ten stages. A network far from linear is chaotic to a derivative, and less
            so rounded off; in return even the true images do not land quite. Gates are frozen: the
            whole second derivative led nowhere from noise. Default: sharp, as the victim.
        focus_after: from this fraction of the iterations on, compare the first layer's displacement
            within the column space of the real one only (see ``FirstLayer``). Needs
            ``images="span"``.
        adjoint, gradient: how the run is differentiated. Default: every step kept, by
            ``fitting_gradient``.
    """

    distance: str | Distance = "cosine"
    position: Annotated[float, NOT_NEGATIVE] = 0.0
    tv: Annotated[float, NOT_NEGATIVE] = 0.0
    colour: Annotated[float, NOT_NEGATIVE] = 0.0
    box: Annotated[float, NOT_NEGATIVE] = 0.0
    term: Term | None = None
    images: str = "auto"
    decay: Annotated[float, NOT_NEGATIVE] = 1.5
    labels: str | Tensor = "balanced"
    n: Annotated[int | None, DUMMIES] = None
    noise: Annotated[float, NOT_NEGATIVE] = 0.5
    start: Tensor | None = None
    learn: tuple[str, ...] = ()
    recipe: Recipe | None = None
    clip_above: Annotated[float | None, POSITIVE] = None
    clip_to: Annotated[float | None, POSITIVE] = None
    clip_until: Annotated[float, FRACTION] = 0.25
    damping: Annotated[float | None, POSITIVE] = None
    focus_after: Annotated[float, FRACTION] = 1.0
    grow_until: Annotated[float, FRACTION] = 0.0
    smooth: tuple[float, float] | None = None
    adjoint: Adjoint = field(default_factory=Direct)  # pyright: ignore[reportIncompatibleVariableOverride]
    gradient: Gradient | None = None

    def __post_init__(self) -> None:
        if self.smooth is not None:
            self.smooth = falling(*self.smooth)

    def problem(self, evidence: Evidence, *, seed: int) -> SimudyProblem:
        """Dummies drawn with ``seed``, in the span's coordinates if asked for.

        Raises:
            SimudyError: a setting is unknown, or does not fit the evidence.
        """
        distance_named(self.distance)
        self._require_whole(evidence)
        if self.colour:
            require_colours(evidence.shape)
        if self.smooth is not None:
            require_relu(evidence, self.smooth)
        evidence = dataclasses.replace(evidence, recipe=self.recipe or evidence.recipe)
        coordinates = coordinates_named(self.images, evidence, decay=self.decay)
        dummy = new_dummy(
            evidence,
            coordinates=coordinates,
            labels=self.labels,
            n=self.n,
            noise=self.noise,
            start=self.start,
            learn=self.learn,
            generator=torch.Generator().manual_seed(seed),
        )
        first = self._first(coordinates, evidence)
        return self.fitted(evidence).posed(coordinates.reduced(evidence), dummy, first)

    def posed(self, evidence: Evidence, dummy: Dummy, first: FirstLayer | None) -> SimudyProblem:
        """The problem of these dummies."""
        return SimudyProblem(self, evidence, dummy, first=first)

    def _require_whole(self, evidence: Evidence) -> None:
        off = {"damping": None, "focus_after": 1.0, "grow_until": 0.0}
        asked = [name for name, value in off.items() if getattr(self, name) != value]
        if evidence.checkpoints and asked:
            raise SimudyError(
                f"Simudy({asked[0]}=…) is for a run simulated in one piece: set "
                f"Simudy({asked[0]}={off[asked[0]]}), or leave Evidence(checkpoints=…) out"
            )

    def fitted(self, evidence: Evidence) -> Simudy:
        recipe = self.recipe or evidence.recipe
        return dataclasses.replace(self, gradient=self.gradient or fitting_gradient(recipe))

    def _first(self, coordinates: Coordinates, evidence: Evidence) -> FirstLayer | None:
        if isinstance(coordinates, SpanCoordinates):
            return FirstLayer.of(coordinates, evidence)
        if self.damping is not None or self.focus_after < 1:
            raise SimudyError(
                "Simudy(damping=…, focus_after=…) need the span's coordinates: set "
                "Simudy(images='span')"
            )
        return None


def fitting_gradient(recipe: Recipe) -> Gradient:
    """Weights of linear layers as factors where the rule allows it and that is cheaper."""
    return Factored() if recipe.optimizer.spans_gradients else Reverse()


class SimudyProblem(Problem):
    """The objective of one attack; see ``Problem``."""

    def __init__(
        self, settings: Simudy, evidence: Evidence, dummy: Dummy, *, first: FirstLayer | None = None
    ) -> None:
        self.settings, self.evidence, self.dummy, self.first = settings, evidence, dummy, first
        self.recipe = evidence.recipe
        self.gradient = settings.gradient or fitting_gradient(self.recipe)
        batches = dummy.batches(self.recipe)
        self.factored = self._chosen(batches)
        self.segments = segments(
            evidence.initial, evidence.checkpoints, evidence.final, steps=len(batches)
        )
        self.real = [self._real(part, batches) for part in self.segments]
        self.pixels = pixel_range(evidence.mean, evidence.std, like=dummy.images())
        self.curvature: Tensor | None = None
        self._soft: SmoothedLoss | None = None

    def variables(self) -> dict[str, Tensor]:
        return self.dummy.variables()

    def objective(self, progress: float) -> tuple[Tensor, Tensor]:
        s, simulated, real = self.settings, self.displacements(progress), self.real
        if self.first is not None:
            focus = progress >= s.focus_after
            if s.damping is not None:
                c, scale = self.dummy.network_inputs(), tree.norm(real[0])
                self.curvature = self.first.curvature(
                    simulated[0], c, scale=scale, damping=s.damping, focus=focus
                )
            if focus:
                simulated, real = (list(map(self.first.focus, ds)) for ds in (simulated, real))
        distance = torch.stack(list(map(self._distance, simulated, real))).sum()
        believed = prior(self.dummy.images, self.pixels, settings=s)
        return distance + believed, distance / len(real)

    def _distance(self, simulated: tree.Params, real: tree.Params) -> Tensor:
        distance = distance_named(self.settings.distance)(simulated, real)
        if not self.settings.position:
            return distance
        return distance + self.settings.position * position(simulated, real)

    def precondition(self) -> None:
        latent = self.dummy.latent
        if self.curvature is not None and latent.grad is not None:
            step = solve(self.curvature, latent.grad.double())
            latent.grad = (step / step.square().mean().sqrt().clamp(min=_TRUST) * _TRUST).to(
                latent.dtype
            )

    @torch.no_grad()
    def refined(self, *, damping: float) -> dict[str, Tensor] | None:
        if self.first is None:
            return None
        simulated = reduce(tree.add, self.displacements())
        return {
            "latent": self.first.decoded(simulated, self.dummy.network_inputs(), damping=damping)
        }

    def stage(self, progress: float) -> object:
        return (
            self._steps(progress),
            progress >= self.settings.focus_after,
            self._sigma(progress),
        )

    def displacements(self, progress: float = 1.0) -> list[tree.Params]:
        """How far each simulated segment goes from its known start; without checkpoints the whole
        run is one.
        """
        batches, rules = self.dummy.batches(self.recipe), self._rules(progress)
        sigma = self._sigma(progress)
        found, state = [], None
        for part in self.segments:
            state = None if part.fresh else state
            taken = batches[part.steps], rules[part.steps]
            end, state = self._simulate(part.start, *taken, state, sigma=sigma)
            last = part is self.segments[-1]
            found.append(tree.sub(rules[-1].final(end, state) if last else end, part.start))
        return found

    def simulate(self, progress: float = 1.0) -> tree.Params:
        """Where the run ends, simulated in one piece: θ̂f."""
        batches, rules = self.dummy.batches(self.recipe), self._rules(progress)
        end, state = self._simulate(self.evidence.initial, batches, rules, None, sigma=0.0)
        return rules[-1].final(end, state)

    def _simulate(
        self, start: tree.Params, batches: list[Any], rules: list[Rule], state: Any, *, sigma: float
    ) -> tuple[tree.Params, Any]:
        return simulate(
            self._loss(sigma),
            start,
            batches[: len(rules)],
            rules,
            adjoint=self.settings.adjoint,
            gradient=self.gradient,
            state=state,
            return_state=True,
        )

    def _sigma(self, progress: float) -> float:
        return sigma_at(self.settings.smooth, progress)

    def _loss(self, sigma: float) -> Loss:
        """One object for each σ, as ``Traced`` records an object once."""
        if not sigma:
            return self.evidence.model.loss
        if self._soft is None or self._soft.sigma != sigma:
            self._soft = SmoothedLoss(self.evidence.model.loss, sigma, frozen=True)
        return self._soft

    def restore(self, images: Tensor, labels: Tensor, learned: dict[str, Tensor]) -> None:
        self.dummy.restore(images, labels, learned)

    def notes(self) -> list[str]:
        count, parts = len(self.evidence.initial), len(self.segments)
        told = [f"{len(self.factored)} of {count} weights factored"] if self.factored else []
        return [*told, *([f"{parts} segments between known weights"] if parts > 1 else [])]

    def images(self) -> Tensor:
        return self.dummy.images()

    def labels(self) -> Tensor:
        return self.dummy.targets()

    def _chosen(self, batches: list[tuple[Tensor, ...]]) -> list[str]:
        """The weights that the simulation holds as factors."""
        known = self.evidence
        return self.gradient.chosen(known.model.loss, known.initial, batches)

    def _real(self, part: Segment, batches: list[tuple[Tensor, ...]]) -> tree.Params:
        """Where a segment went, its weights compact where the simulation's will be."""
        batches = batches[part.steps]
        size = {"rank": len(batches) * len(batches[0][0]), "steps": len(batches)}
        moved, start = part.displacement, part.start
        return {**moved, **{k: compact(moved[k], start[k], **size) for k in self.factored}}

    def _steps(self, progress: float) -> int:
        """How many steps are simulated."""
        whole, grown = self.recipe.steps(len(self.dummy.latent)), self.settings.grow_until
        return whole if progress >= grown else math.ceil(whole * (1 + 3 * progress / grown) / 4)

    def _rules(self, progress: float) -> list[Rule]:
        s, steps = self.settings, self._steps(progress)
        rules = _stretched(self.dummy.rules(self.recipe), steps)
        if s.clip_above is None or progress >= s.clip_until:
            return rules
        return [Clipped(rule, max_norm=s.clip_above, rescale_to=s.clip_to) for rule in rules]


def _stretched(rules: list[Rule], steps: int) -> list[Rule]:
    """``steps`` of the rules, evenly chosen, that together go as far as all of them."""
    if steps == len(rules):
        return rules
    chosen = [rules[i * len(rules) // steps] for i in range(steps)]
    return [scale_hyperparameters(rule, lr=len(rules) / steps) for rule in chosen]
