"""What the outer loop moves: images, labels and, if asked, hyper-parameters of the run."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from simudy.attack.coordinates import Coordinates, Pixels
from simudy.attack.evidence import Evidence
from simudy.attack.link import SOFTMAX, Link, link_of
from simudy.dynamics.optim import Rule
from simudy.dynamics.optim.hyperparameters import scale_hyperparameters
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError
from simudy.ranges import DUMMIES

_COPIES = 8  # variables, gradient, two moments, best, mean, before, and one at work
LABELS = ("balanced", "learned", "given")


@dataclass
class Dummy:
    """The variables of an attack. Every tensor in ``variables()`` is a leaf that requires grad.

    Attributes:
        latent: what the outer loop moves for the images ``(n, …)``; the coordinates decode it.
        labels: class indices ``(n,)``; when learned, what ``link`` makes targets of.
        logs: log-factors on the recipe's hyper-parameters, by name (learned hyper-parameters stay
            positive).
        coordinates: which images the latent stands for.
    """

    latent: Tensor
    labels: Tensor
    logs: dict[str, Tensor]
    coordinates: Coordinates
    link: Link = SOFTMAX

    def variables(self) -> dict[str, Tensor]:
        """The leaves, by name."""
        named = {"latent": self.latent, **{f"log_{k}": v for k, v in self.logs.items()}}
        return {**named, "labels": self.labels} if self.labels.is_floating_point() else named

    def images(self) -> Tensor:
        """Normalised images ``(n, c, h, w)``."""
        return self.coordinates.decode(self.latent)

    def network_inputs(self) -> Tensor:
        """What the run trains on: the images, or their coefficients ``(n, r)`` in the span's
        basis.
        """
        return self.coordinates.network_inputs(self.latent)

    def targets(self) -> Tensor:
        """Labels as the loss takes them: indices ``(n,)``, or targets of the network's outputs."""
        return self.link.targets(self.labels) if self.labels.is_floating_point() else self.labels

    @torch.no_grad()
    def restore(self, images: Tensor, labels: Tensor, learned: dict[str, Tensor]) -> None:
        """Stand where an earlier search ended.

        Args:
            images: normalised ``(n, c, h, w)``. labels: class indices or targets.
            learned: factors on the learned hyper-parameters, by name.
        """
        self.latent.copy_(self.coordinates.encode(images.to(self.latent)))
        soft = labels.is_floating_point()
        self.labels.copy_(self.link.latent(labels) if soft else labels)
        for name, log in self.logs.items():
            log.copy_(learned[name].log())

    def batches(self, recipe: Recipe) -> list[tuple[Tensor, ...]]:
        """One ``(inputs, labels)`` per step."""
        return recipe.collate(self.network_inputs(), self.targets())

    def rules(self, recipe: Recipe) -> list[Rule]:
        """One rule per step, with the learned hyper-parameters in place."""
        rules = recipe.rules(len(self.latent))
        factors = {name: log.exp() for name, log in self.logs.items()}
        return [scale_hyperparameters(rule, **factors) for rule in rules] if factors else rules


def new_dummy(
    evidence: Evidence,
    *,
    coordinates: Coordinates | None = None,
    labels: str | Tensor = "balanced",
    n: int | None = None,
    noise: float = 0.5,
    start: Tensor | None = None,
    learn: tuple[str, ...] = (),
    generator: torch.Generator,
) -> Dummy:
    """Fresh dummies: Gaussian noise for images (0.5·randn, as the released code), labels and
    hyper-parameters as asked.

    Args:
        coordinates: what the images are sought in. Default: pixels.
        labels: ``"balanced"`` (equal count per class, overall and in each batch, at random, fixed),
            ``"learned"`` (from near uniform, or of real targets from near 0), or the labels
            themselves: class indices ``(n,)``, fixed, or targets ``(n, outputs)`` to go on learning
            from.
        n: how many. Default: what the evidence says, or the coordinates tell.
        noise: standard deviation of the initial latent.
        start: normalised images ``(m, c, h, w)``, m ≥ n, to add the noise to: public ones, or what
            a search found.
        learn: names of hyper-parameters to learn along with the images, e.g. ``("lr",)``.

    Raises:
        SimudyError: the number of images is unknown, labels or ``start`` do not fit it, or a mode
            has another name.
    """
    space: Coordinates = coordinates or Pixels(evidence.shape)
    n = known_count(evidence, space) if n is None else n
    if n < 1:
        raise SimudyError(
            f"Method(n={n}): give 1 or more, or None for as many as the evidence says"
        )
    _require_memory(n, space.shape)
    if repeated := sorted({name for name in learn if learn.count(name) > 1}):
        raise SimudyError(f"Method(learn=…) names {repeated[0]!r} more than once: name each once")
    weight = next(iter(evidence.initial.values()))
    latent = (noise * torch.randn(n, *space.shape, generator=generator)).to(weight)
    if start is not None:
        latent = latent + space.encode(_first(start, n, evidence.shape).to(weight))
    link, outputs = link_of(evidence)
    if _is_learned(labels, evidence.classes):
        begun = _learned(labels, (n, *outputs), link, generator=generator, like=weight)
    else:
        size = evidence.recipe.batch_size or n
        begun = _fixed(labels, n, evidence.classes, batch=size, generator=generator)
    return Dummy(
        latent=latent.requires_grad_(),
        labels=begun.to(weight.device),
        link=link,
        logs={name: weight.new_zeros(()).requires_grad_() for name in learn},
        coordinates=space,
    )


def _require_memory(n: int, shape: tuple[int, ...]) -> None:
    """Whether this machine holds the dummies, their gradient and what the outer optimizer keeps."""
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    takes = _COPIES * 4 * n * math.prod(shape)
    if n not in DUMMIES or takes > has:
        raise SimudyError(
            f"{n:,} dummies take about {takes / 2**30:,.1f} GiB, and this machine has "
            f"{has / 2**30:,.1f}: set a smaller Method(n=…) or Method(dummies=…)"
        )


def known_count(evidence: Evidence, coordinates: Coordinates) -> int:
    """The number of training images.

    Raises:
        SimudyError: neither the evidence says it nor the coordinates.
    """
    if (n := evidence.n or coordinates.count) is None:
        raise SimudyError("the number of images is unknown: set Method(n=…)")
    return n


def _first(start: Tensor, n: int, shape: tuple[int, ...]) -> Tensor:
    if len(start) < n or start.shape[1:] != shape:
        raise SimudyError(
            f"{len(start)} images of {tuple(start.shape[1:])} to start {n} dummies of {shape}: "
            f"give {n} or more"
        )
    return start[:n]


def _is_learned(labels: str | Tensor, classes: int) -> bool:
    """Whether the labels are variables. Class numbers are fixed."""
    if classes == 1 and not (isinstance(labels, Tensor) or labels == "learned"):
        raise SimudyError(
            "a network of one class has real targets: set Method(labels='learned'), or to a list "
            "of numbers to go on from; or Evidence(classes=2) for a binary one"
        )
    if isinstance(labels, Tensor):
        return labels.is_floating_point() or classes == 1
    return labels == "learned"


def _learned(
    labels: str | Tensor,
    shape: tuple[int, ...],
    link: Link,
    *,
    generator: torch.Generator,
    like: Tensor,
) -> Tensor:
    """What targets of this shape are made of: a leaf, from noise or from what is given."""
    if not isinstance(labels, Tensor):
        return (0.1 * torch.randn(shape, generator=generator)).to(like).requires_grad_()
    if len(labels) != shape[0] or labels.numel() != math.prod(shape):
        raise SimudyError(
            f"labels of shape {tuple(labels.shape)} given for {shape[0]} images and targets of "
            f"{tuple(shape[1:])}: give so many numbers each, or class indices ({shape[0]},)"
        )
    return link.latent(labels.to(like).reshape(shape)).clone().requires_grad_()


def _fixed(
    labels: str | Tensor, n: int, classes: int, *, batch: int, generator: torch.Generator
) -> Tensor:
    """Class indices ``(n,)``."""
    if isinstance(labels, Tensor):
        if labels.shape != (n,) or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise SimudyError(
                f"{len(labels)} labels given for {n} images of {classes} classes: give one class "
                "index each"
            )
        return labels
    if labels == "balanced":
        rows = torch.arange(n).split(
            batch
        )  # equal count per class in each batch too, as far as it divides
        order = torch.cat([part[torch.randperm(len(part), generator=generator)] for part in rows])
        return order % classes
    raise SimudyError(f"no label mode {labels!r}: choose from balanced, learned, given")
