"""Images decoded from the units they never fired.

A dummy near image i predicts the units that i does not fire: those off for it at both known ends,
before training and after. There row i of D is zero (see ``ReluLayer``), so the column space of ΔW1,
restricted to these units, has it as its smallest singular vector. Some units are predicted wrongly;
robust regression (Cauchy's weights: Holland and Welsch, 1977) reads the row as if they were not
there. What it leaves on the units is a *certificate*, image by image.

Rows that are certified are set aside; all images are moved to where the rows, the certain and the
guessed, explain ΔW1 best, and those that are not certain into what the certain rows leave of its
row space. Nearer images predict better, and so on. When all rows are known, ΔW1 = DᵀX is solved for
X. No label, batch, learning rate or number of epochs takes part, and nothing is simulated.

That zeros of ReLU gradients give images away: Dimitrov et al., SPEAR: Exact gradient inversion of
batches, NeurIPS 2024. Here they are those of a whole run, and predicted rather than searched for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from simudy import stopping
from simudy.attack.evidence import Evidence
from simudy.attack.first_layer.relu_layer import ReluLayer

CERTIFIED_BELOW = 0.01  # all that are below are true rows (docs/results/verdicts.md)
_REWEIGHTED = 30  # times at most
_SETTLED = 1e-12  # 1 − cosine of a row to the one before
_POWER_STEPS = 3
_RIDGE = 1e-15  # relative: what is sought makes the matrix singular
_SAME = 0.98  # cosine between rows of one image
_PATIENCE = 5  # rounds in a row without a certified row
_FEW = 10  # images missing
_PROOFS = 2  # times that all rows are fitted anew, to the images solved for


@dataclass(frozen=True)
class Decoded:
    """What the off units say.

    Attributes:
        images: normalised ``(k, c, h, w)``, k ≤ n. All n certified: exact. Else certified ones come
            first, nearer than their starts, then starts in what these leave of the row space.
        certificates: ``(k,)``, residuals of the images' rows of D on off units, relative to their
            root mean square on all units: near 0 for a true row, else 0.1 and more.
        certified: ``(k,)`` bool.
        starts: ``(k,)``, index of the start that each came from.
        n: number of training images.
        log: by round, the number of starts in play and of rows certified.
    """

    images: Tensor
    certificates: Tensor
    certified: Tensor
    starts: Tensor
    n: int
    log: list[dict[str, int]]

    @property
    def complete(self) -> bool:
        """Whether all n images are certified."""
        return int(self.certified.sum()) == self.n


@torch.no_grad()
def decode_off_units(
    evidence: Evidence,
    images: Tensor,
    *,
    threshold: float = CERTIFIED_BELOW,
    rounds: int = 60,
    damping: float = 0.3,
    precision: torch.dtype | None = None,
    on_round: Callable[[dict[str, int]], None] | None = None,
) -> Decoded:
    """Decode the training images, beginning at rough ones.

    Args:
        images: starts, normalised ``(m, c, h, w)``: a reconstruction, or several, concatenated.
        threshold: certificates below it are accepted.
        rounds: at most so many.
        damping: holds back images whose rows are short, in mean squared lengths, until all rows
            are certain.
        precision: the coarsest type the weights were kept in. Default: the one they are in.
        on_round: called after each round with its number, and how many starts were left and how
            many images are certified: ``round``, ``starts``, ``certified``.

    Raises:
        SimudyError: there are no off units to read; ``ReluLayer.of`` says why.
    """
    layer = ReluLayer.of(evidence, precision=precision)
    rest = _Rows.unknown(layer.coordinates(images))
    found, log, idle = rest[:0], [], 0
    generator = torch.Generator().manual_seed(0)
    while len(log) < rounds and idle < _PATIENCE and len(rest) and len(found) < layer.n:
        rest = rest.fitted(layer)
        new = _distinct(rest.rows, beside=found.rows, among=rest.certificates < threshold)
        found, rest, idle = found + rest[new], rest[~new], 0 if new.any() else idle + 1
        log.append({"round": len(log) + 1, "starts": len(new), "certified": len(found)})
        if on_round is not None:
            on_round(log[-1])
        if len(found) < layer.n:
            found, rest = _moved(layer, found, rest, damping=damping)
            rest = _shaken(layer, found, rest, generator) if idle else rest
    outcome = _proved(layer, found) if len(found) == layer.n else (found + rest)[: layer.n]
    return Decoded(
        (outcome.images @ layer.pixels).reshape(-1, *evidence.shape).to(images),
        outcome.certificates,
        # solved for anew, images may have come to predict one row, which certifies one of them
        _distinct(outcome.rows, beside=outcome.rows[:0], among=outcome.certificates < threshold),
        outcome.starts,
        layer.n,
        log,
    )


@dataclass(frozen=True)
class _Rows:
    """Images and what is taken for their rows of D, ``(k, n)`` each, in the layer's coordinates."""

    images: Tensor
    rows: Tensor
    certificates: Tensor
    starts: Tensor

    @classmethod
    def unknown(cls, images: Tensor) -> _Rows:
        certificates = images.new_full((len(images),), torch.inf)
        starts = torch.arange(len(images), device=images.device)
        return cls(images, torch.zeros_like(images), certificates, starts)

    def fitted(self, layer: ReluLayer) -> _Rows:
        """With the rows that the images predict, the most certain first."""
        fits = [fitted_row(layer, highest) for highest in layer.highest(self.images)]
        rows, certificates = (torch.stack(column) for column in zip(*fits, strict=True))
        return _Rows(self.images, rows, certificates, self.starts)[certificates.argsort()]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: Tensor | slice) -> _Rows:
        return _Rows(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def __add__(self, other: _Rows) -> _Rows:
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return _Rows(*(torch.cat(pair) for pair in pairs))


def fitted_row(layer: ReluLayer, highest: Tensor) -> tuple[Tensor, Tensor]:
    """The row of D ``(n,)``, of length 1, that vanishes on most off units, and its certificate.

    n − 1 of m off units can be made to vanish at will, and half of the others may be predicted
    wrongly, so the residual that counts is the ⌊(m + n + 1)/2⌋-th of m (Rousseeuw, Least median of
    squares regression, 1984).

    Args:
        highest: ``(out,)`` of ``ReluLayer.highest``; the farther below zero, the surer.
    """
    stopping.check()
    off = highest < 0
    basis, weights = layer.units[off], -highest[off]
    (m, n), row, certificate = (
        basis.shape,
        basis.new_full((layer.n,), layer.n**-0.5),
        basis.new_tensor(torch.inf),
    )
    if m <= n + 1:
        return row, certificate
    for _ in range(_REWEIGHTED):
        before, row = row, _smallest(basis, weights, row)
        residual = (basis @ row).abs()
        typical = residual.kthvalue((m + n + 1) // 2).values.clamp(min=layer.rounding(row))
        weights = -highest[off] / (1 + (residual / typical).square())
        certificate = typical * len(layer.units) ** 0.5
        if 1 - (row @ before).abs() < _SETTLED:
            break
    return row, certificate


def _smallest(basis: Tensor, weights: Tensor, guess: Tensor) -> Tensor:
    """The smallest right singular vector ``(n,)`` of weighted rows ``(m, n)``, from a guess."""
    gram = (basis * weights[:, None]).mT @ basis
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    factor = torch.linalg.cholesky_ex(gram)[0]
    for _ in range(_POWER_STEPS):
        guess = F.normalize(torch.cholesky_solve(guess[:, None], factor)[:, 0], dim=0)
    return guess


def _distinct(rows: Tensor, *, beside: Tensor, among: Tensor) -> Tensor:
    """Which of ``rows (k, n)`` are of other images than those beside and before; at most n."""
    chosen = torch.zeros_like(among)
    for i in among.nonzero()[:, 0]:
        if len(beside) < rows.shape[1] and not ((beside @ rows[i]).abs() > _SAME).any():
            beside, chosen[i] = torch.cat([beside, rows[i : i + 1]]), True
    return chosen


def _moved(layer: ReluLayer, found: _Rows, rest: _Rows, *, damping: float) -> tuple[_Rows, _Rows]:
    """The images nearer to the truth, by what is certain of it and what is guessed.

    In pixels, the certain rows leave a space ``left`` for the missing images. Outside it the found
    ones are known, but for their lengths.
    """
    guessed = _distinct(rest.rows, beside=found.rows, among=rest.certificates < torch.inf)
    images = _explaining(layer, found + rest[guessed], damping=damping)
    rest = rest[guessed] + rest[~guessed]
    there, elsewhere = images[: len(found)], images[len(found) :]
    elsewhere = torch.cat([elsewhere, rest.images[len(elsewhere) :]])
    known, left = _known(layer, found)
    outside = there - there @ left.mT @ left
    length = (known * outside).sum(1, keepdim=True) / known.square().sum(1, keepdim=True)
    found = replace(found, images=there - outside + length * known)
    return found, replace(rest, images=elsewhere @ left.mT @ left)


def _known(layer: ReluLayer, found: _Rows) -> tuple[Tensor, Tensor]:
    """The found images ``(k, n)`` outside of ``left``, in lengths of their own, and ``left``, the
    row space of what their rows do not explain: orthonormal ``(n − k, n)``.
    """
    within = layer.moved[:, :-1]
    images = torch.linalg.lstsq(found.rows.mT, within).solution
    left = torch.linalg.svd(within - found.rows.mT @ images)[2][: layer.n - len(found)]
    return images - images @ left.mT @ left, left


def _shaken(layer: ReluLayer, found: _Rows, rest: _Rows, generator: torch.Generator) -> _Rows:
    """Where few images are missing, more starts for them: copies of the best moved at random."""
    if layer.n - len(found) > _FEW:
        return rest
    best, left = rest[torch.arange(_FEW) % len(rest)], _known(layer, found)[1]
    size = found.images.norm(dim=1).mean() * len(left) ** -0.5
    noise = torch.randn(_FEW, len(left), generator=generator, dtype=torch.float64).to(left)
    return rest[:_FEW] + replace(best, images=best.images + size * noise @ left)


def _explaining(layer: ReluLayer, known: _Rows, *, damping: float) -> Tensor:
    """A damped step of the images to ΔW1 = DᵀX and Δb1 = Dᵀ1, with rows of the lengths that fit."""
    rows, size = known.rows, known.images.norm(dim=1).mean()  # the bias counts as much as an image
    x, moved = F.pad(known.images, (0, 1), value=float(size)), layer.moved.clone()
    moved[:, -1] *= size
    overlaps, seen = (rows @ rows.mT) * (x @ x.mT), (rows @ moved * x).sum(1, keepdim=True)
    d = _damped_solve(overlaps, seen, 1e-9) * rows
    return (x + _damped_solve(d @ d.mT, d @ (moved - d.mT @ x), damping))[:, :-1]


def _damped_solve(matrix: Tensor, right: Tensor, damping: float) -> Tensor:
    unit = matrix.diagonal().mean() * torch.eye(len(matrix)).to(matrix)
    return torch.linalg.solve_ex(matrix + damping * unit, right)[0]


def _proved(layer: ReluLayer, found: _Rows) -> _Rows:
    """The images that all rows together determine, which must predict these rows themselves."""
    for _ in range(_PROOFS):
        found = replace(found, images=_solved(layer, found.rows)).fitted(layer)
    return replace(found, images=_solved(layer, found.rows))


def _solved(layer: ReluLayer, rows: Tensor) -> Tensor:
    """X of ΔW1 = DᵀX; the pixel that is 1 in every image tells the lengths of the rows."""
    x = torch.linalg.solve_ex(rows.mT, layer.moved)[0]
    return x[:, :-1] / x[:, -1:]
