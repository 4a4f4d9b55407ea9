"""The first layer of a ReLU network as the images moved it: what off units are decoded from.

ΔW1 = DᵀX and Δb1 = Dᵀ1 exactly, where row i of D ``(n, out)`` is what image i did to the layer's
outputs over the whole run, whatever the batches, the momentum or the learning rates were; what
weight decay did is taken out. D_ij is zero where image i never fires unit j.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simudy.attack.checkpoints.findings import rounding_variance
from simudy.attack.evidence import Evidence
from simudy.attack.first_layer.span import Span, without_gradients
from simudy.dynamics.optim.rule import end_on
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

_ROUNDING = 0.25  # root mean square error of a rounded number, over its size and the type's eps


@dataclass(frozen=True)
class ReluLayer:
    """The first layer in the coordinates of ΔW1's row space and column space, in float64.

    Attributes:
        pixels: orthonormal rows ``(n, d)`` in which images have coordinates ``(n,)``.
        units: orthonormal columns ``(out, n)`` in which the rows of D have coordinates ``(n,)``.
        moved: ``(n, n + 1)``, ΔW1 in both; and Δb1 in ``units``, as of one pixel more that is 1 in
            every image.
        ends: weights ``(out, n)`` and bias ``(out,)`` before training, and after.
        noise: what rounding left in each entry of ΔW1.
    """

    pixels: Tensor
    units: Tensor
    moved: Tensor
    ends: list[tuple[Tensor, Tensor]]
    noise: float

    @classmethod
    def of(cls, evidence: Evidence, *, precision: torch.dtype | None = None) -> ReluLayer:
        """Read it off the evidence.

        Args:
            precision: the coarsest type the weights were kept in. Default: the evidence's.

        Raises:
            SimudyError: the first layer is not linear with a bias and a ReLU after it, the rule
                leaves the gradients' span or treats the bias otherwise, the images depend
                linearly on each other, or rounding hides some.
        """
        weight, bias, n = _names_and_number(evidence)
        _require_relu(evidence, weight, bias)
        _require_one_rule(evidence, weight, bias)
        held = evidence.initial, evidence.final
        ends = [[w[k].double() for k in (weight, bias)] for w in held]
        still = [without_gradients(evidence, k).double() for k in (weight, bias)]
        columns, values, rows = torch.linalg.svd(ends[1][0] - still[0], full_matrices=False)
        noise = _noise(evidence, weight, precision)
        _require_visible(values[:n], noise * sum(s**0.5 for s in still[0].shape))
        units, pixels = columns[:, :n].contiguous(), rows[:n]
        moved = torch.cat([values[:n].diag(), (units.mT @ (ends[1][1] - still[1]))[:, None]], 1)
        return cls(pixels, units, moved, [(w @ pixels.mT, b) for w, b in ends], noise)

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.pixels)

    def coordinates(self, images: Tensor) -> Tensor:
        """Of images ``(m, c, h, w)``, or of those nearest to them in the row space: ``(m, n)``."""
        return images.flatten(1).to(self.pixels) @ self.pixels.mT

    def highest(self, coordinates: Tensor) -> Tensor:
        """The larger of the pre-activations ``(m, out)`` at both ends: negative for off units."""
        return torch.maximum(*(coordinates @ w.mT + b for w, b in self.ends))

    def rounding(self, row: Tensor) -> Tensor:
        """What is left by rounding on a unit where a row of D, with these coordinates, is zero."""
        return self.noise * (row / self.moved.diagonal()).norm()


def _names_and_number(evidence: Evidence) -> tuple[str, str, int]:
    """Names of the first layer's weight and bias, and the number of images."""
    try:
        span = Span.of(evidence)
    except SimudyError as error:
        raise _refusal(str(error).partition(":")[0]) from error
    bias = span.layer.removesuffix("weight") + "bias"
    if bias not in evidence.initial or torch.equal(evidence.initial[bias], evidence.final[bias]):
        raise _refusal("the first layer has no trained bias, which tells the images' scale")
    if evidence.n not in (None, span.rank):
        raise _refusal(f"{evidence.n} images span {span.rank} dimensions, so some depend on others")
    return span.layer, bias, span.rank


def _require_relu(evidence: Evidence, weight: str, bias: str) -> None:
    """What is below zero before the activation must not matter after it."""
    start, generator = evidence.initial, torch.Generator().manual_seed(0)
    image = torch.randn(1, *evidence.shape, generator=generator).to(start[weight])
    below = start[weight] @ image.flatten() + start[bias] < 0
    lowered, raised = (
        {**start, bias: start[bias] + by} for by in (-below.to(image), below.to(image))
    )
    as_it_is, deeper, fired = (evidence.model(p, image) for p in (start, lowered, raised))
    if not torch.equal(as_it_is, deeper) or torch.equal(as_it_is, fired):
        raise _refusal("no ReLU, whose units are off for many images, follows the first layer")


def _require_visible(values: Tensor, noise: float) -> None:
    if hidden := int((values <= noise).sum()):
        raise _refusal(
            f"the weights' rounding, or noise in them, hides {hidden} of {len(values)} images"
        )


def _require_one_rule(evidence: Evidence, weight: str, bias: str) -> None:
    """Equal gradients must move the bias as they move the weight: else its D is another."""
    moved, still = _end(evidence, 1.0), _end(evidence, 0.0)
    by = [(moved[name] - still[name]).mean() for name in (weight, bias)]
    if not torch.allclose(*by, rtol=1e-3):
        raise _refusal("the first layer's bias was trained by another rule than its weight")


def _end(evidence: Evidence, size: float) -> Params:
    """Where a run of gradients that are the same for all parameters, single numbers, ends."""
    params = {name: w.new_zeros(()) for name, w in evidence.initial.items()}
    alike = lambda t: {k: torch.full_like(p, size / (1 + t)) for k, p in params.items()}  # noqa: E731
    return end_on(evidence.recipe.rules(evidence.n or 1), params, alike)


def _noise(evidence: Evidence, weight: str, precision: torch.dtype | None) -> float:
    """Of one entry of ΔW1: every step rounds the weights, publishing them may, and may hide them
    in noise of its own.
    """
    ends = evidence.initial[weight], evidence.final[weight]
    known = precision or evidence.published
    kept = known if known.is_floating_point else ends[0].dtype  # nobody trains in whole numbers
    size = float(ends[0].square().mean().sqrt())
    steps = evidence.recipe.steps(evidence.n or 1)
    variance = (_ROUNDING * torch.finfo(kept).eps * size) ** 2 * steps
    if known is not kept:
        variance += sum(float(rounding_variance(w, known).mean()) for w in ends)
    return (variance + evidence.hidden.get(weight, 0.0) ** 2) ** 0.5


def _refusal(reason: str) -> SimudyError:
    return SimudyError(f"off units cannot be decoded: {reason}")
