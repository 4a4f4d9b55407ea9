"""What a search could have seen, measured on its own dummies: no true image takes part."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from simudy.analysis.linearity import linearity
from simudy.analysis.report.conclusion import FITTED, MARGIN, highest_floor
from simudy.attack.checkpoints.findings import rounding_variance
from simudy.attack.checkpoints.limits import rounding_share
from simudy.attack.distance import cosine
from simudy.attack.evidence import Evidence
from simudy.attack.first_layer.relu_layer import ReluLayer
from simudy.attack.first_layer.span import rank_of
from simudy.dynamics import tree
from simudy.dynamics.recipe import Recipe
from simudy.dynamics.simulate import simulate
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

NOISE = 1e-3  # on the normalised dummies
LINEAR = 0.65  # M_lin below which no search of ours came to images (docs/notes)
CHAOTIC = 0.1  # of the displacement: a run that noise moves farther hardly tells images apart
STOPPED = 0.05  # of the objective, in the last fifth
SHOWN = 4  # layers


@dataclass(frozen=True)
class Line:
    """One figure and what it means.

    Attributes:
        key: for programs; ``name``, ``figure`` and ``meaning`` are for people.
        value: the bare number; None where it was not had.
    """

    key: str
    name: str
    figure: str
    meaning: str
    value: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Present:
    """Where the search stands: its dummies, and the run as it takes it to have been."""

    evidence: Evidence
    recipe: Recipe
    images: Tensor
    labels: Tensor

    @torch.no_grad()
    def displacement(self, images: Tensor) -> Params:
        """Of the run on ``images``."""
        e, recipe = self.evidence, self.recipe
        batches, rules = recipe.collate(images, self.labels), recipe.rules(len(images))
        return tree.sub(simulate(e.model.loss, e.initial, batches, rules), e.initial)


def measured(key: str, name: str, measure: Callable[[], Line]) -> Line:
    """The line, or why it could not be had."""
    try:
        return measure()
    except SimudyError as error:
        return Line(key, name, "not measured", f"{error}.")


def linear(now: Present) -> Line:
    """M_lin of the run on the dummies."""
    labels = now.labels.argmax(1) if now.labels.is_floating_point() else now.labels
    e = now.evidence
    m_lin = linearity(e.model.loss, e.initial, now.images, labels, now.recipe).m_lin
    meaning = (
        f"Below {LINEAR} gradients turn while the network trains, and hardly any search here comes "
        "to images: fewer epochs, a wider network or checkpoints in between would change it."
        if m_lin < LINEAR
        else "Gradients keep their direction: a search can follow this run."
    )
    return Line("m_lin", "M_lin, on the present dummies", f"{m_lin:.2f}", meaning, m_lin)


def sensitive(now: Present) -> Line:
    """How far noise on the dummies moves the end of the run."""
    noise = NOISE * torch.randn(now.images.shape, generator=torch.Generator().manual_seed(0))
    end = now.displacement(now.images)
    moved = tree.sub(now.displacement(now.images + noise.to(now.images)), end)
    share = float(tree.norm(moved) / tree.norm(end))
    meaning = (
        "The end jumps: neighbouring images end far apart, gradients of the search mislead, and "
        "the true images themselves may miss the weights by rounding alone."
        if share > CHAOTIC
        else "The end moves with the images, so that a search has something to follow."
    )
    figure = f"{100 * share:.2g} % of the displacement"
    return Line("sensitivity", f"end moved by noise of {NOISE:g}", figure, meaning, share)


def fitted(now: Present) -> Line:
    """How well the run on the dummies explains the weights."""
    distance = float(cosine(now.displacement(now.images), now.evidence.displacement))
    meaning = (
        f"More than {FITTED:g}: these images do not explain the weights, so their not being like "
        "the true ones shows nothing."
        if distance > FITTED
        else "The weights are explained; whether other images explain them too, the verdicts say."
    )
    name = "1 − cos of the run replayed to the real one"
    return Line("fit", name, f"{distance:.2g}", meaning, distance)


def blank(now: Present) -> Line:
    """How well the run on noise explains the weights: as well, and a fit is worth nothing."""
    noise = torch.randn(now.images.shape, generator=torch.Generator().manual_seed(1))
    moved = now.displacement(noise.to(now.images))
    distance = float(cosine(moved, now.evidence.displacement))
    meaning = (
        "Noise explains these weights too: what moved them (weight decay, the last bias) hardly "
        "depends on the images, and a search cannot see them in the distance."
        if distance <= FITTED
        else "Images other than the true ones end elsewhere: the distance tells them apart."
    )
    return Line("blank", "1 − cos of the run on noise", f"{distance:.2g}", meaning, distance)


def ranked(evidence: Evidence) -> Line:
    """The numerical rank of each layer's displacement, first layers first."""
    found = []
    for name, moved in evidence.displacement.items():
        if moved.dim() >= 2 and bool(moved.any()):
            matrix = moved.flatten(1).double()
            values = torch.linalg.svdvals(matrix)
            rank = rank_of(values, noise=_rounding(evidence, name))
            found.append((name, rank, len(values)))
    told = "; ".join(f"{name} {rank} of {full}" for name, rank, full in found[:SHOWN])
    more = f"; and {len(found) - SHOWN} more layers" if len(found) > SHOWN else ""
    full = [name for name, rank, most in found if rank == most]
    n = evidence.n or "an unknown number of"
    meaning = (
        f"Against {n} images. A linear layer that sees each image once a step has rank n: it pins "
        "down the space the images lie in. A layer at full rank "
        + (f"({', '.join(full[:2])}{', …' if full[2:] else ''}) " if full else "(none here) ")
        + "mixes more directions than it has, and hides them."
    )
    return Line("rank", "rank of each layer's displacement", told + more, meaning)


def off(now: Present) -> Line:
    """How many first-layer units are off for a dummy at both ends."""
    layer = ReluLayer.of(now.evidence)
    units = (layer.highest(layer.coordinates(now.images)) < 0).double().sum(1)
    typical, n = float(units.median()), layer.n
    meaning = (
        f"More than {n} images: they can be decoded exactly, and certified, from images near "
        "enough (outer.decode=true)."
        if typical > n + 1
        else f"Not more than {n} images: nothing can be decoded off units. Fewer images would."
    )
    figure = f"{typical:.0f} of {len(layer.units)}, for {n} images"
    name = "first-layer units off at both ends"
    return Line("off_units", name, figure, meaning, typical / (n + 1))


def precise(evidence: Evidence) -> Line:
    """What rounding and noise at publication, or in training, left of the displacement."""
    rounded, noised = rounding_share(evidence), _noise_share(evidence)
    share = math.hypot(rounded, noised)
    what = "Noise" if noised > rounded else "Rounding"
    meaning = (
        f"{what} hides much of what training moved: ask for weights as they were trained."
        if share > CHAOTIC
        else f"{what} hides next to nothing of what training moved."
    )
    kind = str(evidence.published).removeprefix("torch.")
    figure = f"{kind}: rounding is {100 * rounded:.2g} % of the displacement"
    figure += f", noise {100 * noised:.2g} %" if noised else ""
    return Line("precision", "precision as published", figure, meaning, share)


def _noise_share(evidence: Evidence) -> float:
    """The norm of noise that is known to be in the final weights, over that of θf − θ0."""
    final, hidden = evidence.final, evidence.hidden
    noise = sum(std**2 * final[name].numel() for name, std in hidden.items() if name in final)
    return math.sqrt(noise) / float(tree.norm(evidence.displacement))


def _rounding(evidence: Evidence, name: str) -> float:
    weight = evidence.initial[name].flatten(1)
    variance = float(rounding_variance(weight, evidence.published).mean())
    return 2 * variance**0.5 * sum(size**0.5 for size in weight.shape)


def floored(result: Mapping[str, Any]) -> Line:
    """The score beside what images score that saw no weights."""
    score, floor = result.get("ssim_paper"), highest_floor(result)
    if score is None or floor is None:
        meaning = "There are no true images here: verdicts on images say what stands without them."
        return Line("floor", "SSIM beside its floor", "not known", meaning)
    above = "clearly above" if score >= floor + MARGIN else "not clearly above"
    meaning = f"The images are {above} what pictures score that know nothing of these weights."
    return Line("floor", "SSIM beside its floor", f"{score:.3f} / {floor:.3f}", meaning, score)


def spent(result: Mapping[str, Any], history: list[dict[str, Any]]) -> Line:
    """The cost, and whether the search still fell when it ended."""
    values = [float(row["objective"]) for row in history if row.get("objective") not in (None, "")]
    before = min(values[: -max(len(values) // 5, 1)], default=None)
    gain = 0.0 if not before or before <= 0 else max(0.0, 1 - min(values) / before)
    meaning = f"In the last fifth the objective still fell by {100 * gain:.0f} %" + (
        ": it was stopped on its way."
        if gain > STOPPED
        else ": it had come to rest, which its decaying steps bring about wherever it is."
    )
    figure = f"{result.get('iterations', 0):,} iterations, {result.get('seconds') or 0:,.0f} s"
    return Line("compute", "compute spent", figure, meaning, gain)
