"""The row space of the first layer's displacement, in which the images must lie.

When the first layer is linear in the flattened image, its gradient on a batch is δᵀx: every row of
ΔW1 is a combination of the training images. Under a rule whose iterates are combinations of
gradients, rank(ΔW1) is therefore the number of images, and each image is ``coefficients @ basis``.
Expressed in that basis the whole run shrinks: the first layer becomes ``W1 Bᵀ (out, r)`` acting on
r coefficients, exactly, because gradients never leave the span.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simudy.attack.checkpoints.findings import rounding_variance
from simudy.attack.evidence import Evidence
from simudy.dynamics.gradient.compact import leading
from simudy.dynamics.optim import Rule
from simudy.dynamics.optim.rule import end_on
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

CLEARLY = 1.2  # times the edge of the noise: above it a singular value is no noise
_NOT_LINEAR = (
    "the model's first layer is not linear in the flattened image: set "
    "Method(images='frequencies') or pixels"
)


class NoSpan(SimudyError):
    """The images lie in no span that the first layer tells: nothing is wrong, other coordinates
    do.
    """


@dataclass(frozen=True)
class Span:
    """Coordinates for images.

    Attributes:
        layer: name of the first layer's weight.
        basis: orthonormal rows ``(r, d)``, d = c·h·w.
        singular_values: of the gradient part of ΔW1, descending: the gap after the r-th is the
            evidence for r.
    """

    layer: str
    basis: Tensor
    singular_values: Tensor
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Dimension of the span: the number of training images, where they are independent."""
        return len(self.basis)

    @classmethod
    def of(cls, evidence: Evidence, *, rank: int | None = None) -> Span:
        """Find the span from the weights.

        Args:
            rank: its dimension, if known. Default: where the singular values fall off.

        Raises:
            SimudyError: the first layer is not linear in the image, or did not train; the rule
                leaves the span of the gradients; or the span has more dimensions than there are
                images.
        """
        layer = first_linear(evidence)
        if any(checkpoint.resumed is not None for checkpoint in evidence.checkpoints):
            raise NoSpan(
                "the run went on from weights that others moved, so its displacement has no span "
                "of its own: set Method(images='frequencies') or pixels"
            )
        if evidence.recipe.augment is not None:
            raise NoSpan(
                "the images were augmented, so that the span is of what the network saw, not of "
                "them: set Method(images='frequencies') or pixels"
            )
        gradient_part = evidence.final[layer] - without_gradients(evidence, layer)
        if not bool(gradient_part.any()):
            raise NoSpan(
                f"the first layer, {layer!r}, did not train, so its displacement has no span: set "
                "Method(images='frequencies') or pixels"
            )
        noise = _noise(evidence, layer)
        values, rows = _leading(gradient_part.double(), evidence.n, noise=noise)
        rank = rank or _dimension(values, evidence, noise=noise)
        span = cls(layer, rows[:rank].to(gradient_part.dtype), values, evidence.shape)
        _require_same_function(span, evidence)
        return span

    def decode(self, coefficients: Tensor) -> Tensor:
        """Normalised images ``(n, c, h, w)`` of coefficients ``(n, r)``."""
        return (coefficients @ self.basis).reshape(-1, *self.shape)

    def encode(self, images: Tensor) -> Tensor:
        """SpanCoordinates ``(n, r)`` of the projection of images ``(n, c, h, w)``."""
        return images.flatten(1) @ self.basis.mT

    def reduce(self, evidence: Evidence) -> Evidence:
        """The same run in the span's coordinates: first layer ``(out, r)``, images as coefficients
        ``(n, r)``.

        The part of ΔW1 outside the span, which no image can move, is dropped on both sides.
        """
        return _unchecked(
            evidence,
            initial=self._reduced(evidence.initial),
            final=self._reduced(evidence.final),
            checkpoints=tuple(c.mapped(self._reduced) for c in evidence.checkpoints),
            shape=(self.rank,),
        )

    def _reduced(self, weights: Params) -> Params:
        return {**weights, self.layer: weights[self.layer] @ self.basis.mT}


def first_linear(evidence: Evidence) -> str:
    """The name of the weight ``(out, d)`` that acts first, and directly, on the flattened image.

    Raises:
        SimudyError: there is none, or the rule is not of the SGD family.
    """
    rules: list[Rule] = evidence.recipe.rules(evidence.n or 1)
    if not all(rule.spans_gradients for rule in rules):
        rule = type(rules[0]).__name__
        raise NoSpan(
            f"{rule} moves weights out of the gradients' span: set "
            "Method(images='frequencies') or pixels"
        )
    size = math.prod(evidence.shape)
    name = next((k for k, w in evidence.initial.items() if w.dim() >= 2), None)
    if name is None or evidence.initial[name].dim() != 2 or evidence.initial[name].shape[1] != size:
        raise NoSpan(_NOT_LINEAR)
    return name


def _dimension(values: Tensor, evidence: Evidence, *, noise: float) -> int:
    """The dimension of the span, as far as the weights' precision shows it.

    Weights that were rounded before they were published hide the directions that moved them less
    than that. Then there is no gap: all that stands out counts, or the number told.
    """
    n, seen = evidence.n, evidence.precision is None and not evidence.hidden
    standing_out = max(int((values > CLEARLY * noise).sum()), 1)
    rank = rank_of(values, noise=noise) if seen else standing_out
    if n is not None and rank > n:
        raise SimudyError(
            f"the first layer moved in {rank} directions, more than {n} images can move it: set "
            "Evidence(n=…) to their number, the recipe to what the run had, or "
            "Method(images='frequencies')"
        )
    return min(n, len(values)) if n is not None and not seen else rank


def rank_of(values: Tensor, *, noise: float) -> int:
    """How many singular values (descending) stand out: the largest ratio between neighbours, above
    the noise.
    """
    values = values.clamp(min=noise)
    ratios = values[:-1] / values[1:]
    return int(ratios.argmax()) + 1 if len(ratios) else len(values)


def _leading(matrix: Tensor, n: int | None, *, noise: float) -> tuple[Tensor, Tensor]:
    """Singular values, descending, and right singular vectors ``(k, d)``: at least all that stand
    out of the noise.
    """
    few = 2 * n + 20 if n else min(matrix.shape)
    if few < min(matrix.shape):
        _, values, rows = leading(matrix, few)
        if values[-1] < 10 * noise:  # the fall is in sight
            return values, rows
    _, values, rows = torch.linalg.svd(matrix, full_matrices=False)
    return values, rows


def _noise(evidence: Evidence, layer: str) -> float:
    """Round-off in ΔW1: each of the run's steps rounds every entry of W1 to its type's
    precision.
    """
    weight = evidence.initial[layer]
    edge = sum(size**0.5 for size in weight.shape)  # of noise of variance 1, see _rounding
    added = evidence.hidden.get(layer, 0.0) * edge
    if evidence.precision is not None:
        rounding = _rounding(weight, evidence.final[layer], evidence.published)
        return math.hypot(rounding, added)
    eps = torch.finfo(weight.dtype).eps
    return added or float(eps * weight.norm() / max(weight.shape) ** 0.5 * 0.5)


def _rounding(initial: Tensor, final: Tensor, kind: torch.dtype) -> float:
    """The largest singular value of what rounding both to ``kind`` leaves in their difference.

    Errors are uniform within half a spacing, and independent: the edge of their spectrum is
    σ(√m + √d) (Marchenko and Pastur, 1967).
    """
    variance = sum(rounding_variance(w, kind).mean() for w in (initial, final))
    return float(variance) ** 0.5 * sum(size**0.5 for size in initial.shape)


def without_gradients(evidence: Evidence, layer: str) -> Tensor:
    """Where the weight would have gone on zero gradients: weight decay alone moves it."""
    # The other parameters as single numbers: rules by name want to see them all.
    params: Params = {
        name: weight if name == layer else weight.new_zeros(())
        for name, weight in evidence.initial.items()
    }
    zero = {k: torch.zeros_like(v) for k, v in params.items()}
    return end_on(evidence.recipe.rules(evidence.n or 1), params, lambda _: zero)[layer]


def _require_same_function(span: Span, evidence: Evidence) -> None:
    """The reduced model on coefficients must be the model on the images they stand for."""
    coefficients = torch.randn(2, span.rank, dtype=span.basis.dtype, device=span.basis.device)
    reduced = {**evidence.initial, span.layer: evidence.initial[span.layer] @ span.basis.mT}
    try:
        same = torch.allclose(
            evidence.model(reduced, coefficients),
            evidence.model(evidence.initial, span.decode(coefficients)),
            1e-3,
            1e-4,
        )
    except (
        RuntimeError,
        ValueError,
        IndexError,
    ) as error:  # a layer before it looked at the image's shape
        raise NoSpan(_NOT_LINEAR) from error
    if not same:
        raise NoSpan(_NOT_LINEAR)


def _unchecked(evidence: Evidence, **changes: object) -> Evidence:
    # The reduced first layer does not fit the module's declared size, which functional_call does
    # not mind.
    reduced = object.__new__(Evidence)
    reduced.__dict__.update({**vars(evidence), **changes})
    return reduced
