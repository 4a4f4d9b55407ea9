"""What the weights tell of one image at best: the Fisher information through the whole run, and the
bound on any attack that follows from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simudy.analysis.exposure.spectrum import spectrum
from simudy.dynamics import tree
from simudy.dynamics.gradient import Loss
from simudy.dynamics.model.smoothed import SmoothedLoss
from simudy.dynamics.recipe import Recipe
from simudy.dynamics.simulate import simulate
from simudy.dynamics.tree import Params

ASSUMPTIONS = (
    "the attacker knows the recipe, the initial weights, all labels and all other images: a real "
    "one knows less, so the bound holds for him too",
    "the run itself computed exactly; what hides images is the rounding of the published weights, "
    "and noise added to them, taken as independent and normal",
    "before looking, each pixel is known up to the prior's standard deviation, independently; a "
    "better prior (what faces look like) does better than the bound",
    "the run is taken as linear around the true image; with smoothing, around it on the scale of σ",
)


@dataclass(frozen=True)
class Exposure:
    """How much of one image the weights determine.

    Attributes:
        dimensions: directions in which the weights say more than the prior.
        share: of all ``c·h·w``.
        psnr_bound: no attack's expected squared error is below what this PSNR says.
        bits: that the weights tell of it.
        error: standard error of ``psnr_bound`` from the random starts, in dB; 0 where exact.
    """

    dimensions: float
    share: float
    psnr_bound: float
    bits: float
    error: float

    @property
    def says_nothing(self) -> bool:
        """Less than one direction, and less than one bit."""
        return self.dimensions < 1 and self.bits < 1


class LinearisedRun:
    """The end of a run as a linear function of its images, around the true ones.

    One graph of the run is kept; a product with its Jacobian is a backward pass through it, or two.

    Args:
        loss: ``(params, batch) -> scalar``.
        initial: θ0.
        images: normalised ``(n, c, h, w)``. labels: ``(n,)``.
        recipe: the run.
        noise: standard deviation of what hides each published weight, by name.
        scale: of one pixel unit in normalised ones, broadcast over an image ``(c, h, w)``.
        smooth: σ of the ReLUs (see ``Smoothed``).
    """

    def __init__(
        self,
        loss: Loss,
        initial: Params,
        images: Tensor,
        labels: Tensor,
        recipe: Recipe,
        *,
        noise: Params,
        scale: Tensor,
        smooth: float = 0.0,
    ) -> None:
        self.scale, self.images = scale, images.detach().clone().requires_grad_()
        batches, rules = recipe.collate(self.images, labels), recipe.rules(len(images))
        self.final = simulate(SmoothedLoss(loss, smooth), initial, batches, rules)
        self._end = torch.cat([(self.final[k] / noise[k]).flatten() for k in initial])
        self._seed = torch.zeros_like(self._end, requires_grad=True)
        self._pulled = self._pull(self._seed, create_graph=True)

    def information(self, index: int, direction: Tensor) -> Tensor:
        """JᵀJ·direction ``(d,)`` for one image, in pixel units; J is by standard deviations."""
        moved = torch.zeros_like(self.images)
        moved[index] = direction.reshape(self.images.shape[1:]) * self.scale
        pushed = _grad(self._pulled, self._seed, moved)
        return (self._pull(pushed)[index] * self.scale).flatten()

    def _pull(self, cotangent: Tensor, *, create_graph: bool = False) -> Tensor:
        return _grad(self._end, self.images, cotangent, create_graph=create_graph)


def _grad(end: Tensor, by: Tensor, along: Tensor, *, create_graph: bool = False) -> Tensor:
    """The derivative, zero where ``end`` does not depend on ``by``."""
    if not end.requires_grad:
        return torch.zeros_like(by)
    found = torch.autograd.grad(
        end, by, along, retain_graph=True, create_graph=create_graph, allow_unused=True
    )[0]
    return torch.zeros_like(by) if found is None else found


def exposure(
    run: LinearisedRun, index: int, *, prior: float, starts: int, steps: int, seed: int = 0
) -> Exposure:
    """Of the image ``index``. Costs ``starts·steps`` products, three backward passes each.

    MSE ≥ mean_k 1/(s_k² + 1/prior²) over the singular values s_k of J (van Trees, with a normal
    prior; Cramér and Rao's bound as the prior widens).

    Args:
        prior: standard deviation of a pixel before looking, pixels being in [0, 1].
        starts, steps, seed: see ``spectrum``.
    """
    like = run.images[index].detach().flatten()
    found = spectrum(
        lambda v: run.information(index, v), like, starts=starts, steps=steps, seed=seed
    )
    values, counts, size = found[:, 0], found[:, 1], len(like)
    told = values * prior**2
    bounds = (counts * prior**2 / (1 + told)).sum(1) / size + (
        (size - counts.sum(1)).clamp(min=0) * prior**2 / size
    )
    psnr = -10 * bounds.log10()
    error = float(psnr.std() / math.sqrt(len(psnr))) if len(psnr) > 1 else 0.0
    dimensions = float((counts * (told > 1)).sum(1).mean())
    return Exposure(
        dimensions=dimensions,
        share=dimensions / size,
        psnr_bound=-10 * math.log10(float(bounds.mean())),
        bits=float((counts * torch.log2(1 + told)).sum(1).mean()) / 2,
        error=error,
    )


def bias(run: LinearisedRun, initial: Params, final: Params) -> float:
    """1 − cos of where the linearised run ends and where the real one did: what smoothing, other
    precision and an unlike recipe make of it.
    """
    ours, real = tree.sub(tree.detach(run.final), initial), tree.sub(final, initial)
    lengths = tree.norm(ours) * tree.norm(real)
    return float(1 - tree.dot(ours, real) / torch.where(lengths == 0, 1.0, lengths))
