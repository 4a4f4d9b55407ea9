"""A reconstruction against the secret: the paper's protocol, stricter figures beside it, and the
floor under both.

A floor is the score of something that saw no weights at all. A method that returns a generic face,
or enough noise to choose from, earns a floor; only what lies above it was read out of the network.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simudy.analysis.metrics import contrast, mse, pairwise_ssim, psnr
from simudy.analysis.pairing import UNMATCHED, greedy, hungarian, matched
from simudy.errors import SimudyError

RECOVERED = 0.4  # pixel SSIM above which an image counts as recovered, the literature's custom
# decibels; float32 pixels resolve no more, and one exact image must not make the mean infinite
EXACT = 100.0


class Normalisation(Protocol):
    """What is needed of a data set's mean/std normalisation."""

    def denormalise(self, images: Tensor) -> Tensor:
        """(n, c, h, w) normalised -> pixels, nominally in [0, 1] but not clipped."""
        ...


@dataclass(frozen=True)
class Pair:
    """The partners of one true image; an index of −1 means that none was left, and its score is
    0.
    """

    index: int  # reconstruction paired with it by pixel SSIM (Hungarian)
    ssim: float  # their pixel SSIM
    paper_index: int  # reconstruction paired with it by the paper's protocol (greedy)
    ssim_paper: float  # their SSIM by the paper's protocol


@dataclass(frozen=True)
class Score:
    """Means over all n true images; unmatched ones count as SSIM 0, PSNR 0 dB and MSE 1, the worst
    pixels can do.
    """

    ssim_paper: float  # normalised and unclipped, range of each true image, greedy pairing
    ssim: float  # [0, 1] pixels, Hungarian pairing by pixel SSIM, as are the next three
    psnr: float  # decibels, each image's capped at 100
    mse: float
    recovered: float  # fraction of true images with pixel SSIM > 0.4
    floor: dict[
        str, float | None
    ]  # ssim_paper of `heldout`, `noise` and `class_mean` images in the attack's place
    pairs: tuple[Pair, ...]  # in the order of the true images

    @property
    def highest_floor(self) -> float:
        """What to beat."""
        return max(value for value in self.floor.values() if value is not None)

    @property
    def above_floor(self) -> bool:
        """Whether the attack did better than every floor; a generic image does not."""
        return self.ssim_paper > self.highest_floor

    def as_dict(self) -> dict:
        """The score keys of result.json: plain numbers, and null where there is none or it is not
        finite.
        """
        names = ("ssim_paper", "ssim", "psnr", "mse", "recovered")
        figures = {name: _finite(getattr(self, name)) for name in names}
        return {**figures, "floor": {name: _finite(value) for name, value in self.floor.items()}}


def score(
    reconstruction: Tensor,
    truth: Tensor,
    *,
    normalisation: Normalisation | None,
    heldout: Tensor | None = None,
    truth_labels: Tensor | None = None,
    heldout_labels: Tensor | None = None,
    seed: int = 0,
) -> Score:
    """Score a reconstruction by the paper's protocol and by stricter ones, with floors.

    Args:
        reconstruction: (m, c, h, w) normalised, unclipped; m may exceed n. A value that is not
            finite is read as 0.
        truth: (n, c, h, w) normalised: the secret.
        normalisation: brings images back to pixels, which are then clipped to [0, 1]; None if they
            are pixels already.
        heldout: (k, c, h, w) normalised images that the victim was not trained on, for the floors;
            None: no such floor.
        truth_labels, heldout_labels: (n,) and (k,) classes, for the class-mean floor; without both,
            the mean of all.
        seed: draws the noise and the choice among the held-out images.
    Raises: SimudyError for shapes that do not fit each other, or images below 7×7.
    """
    reconstruction = torch.nan_to_num(
        _like(truth, reconstruction, "reconstruction"), posinf=0.0, neginf=0.0
    )
    match, values = paper_pairing(reconstruction, truth)
    pixel_match, pixel = _pixel_figures(
        to_pixels(reconstruction, normalisation), to_pixels(truth, normalisation)
    )
    return Score(
        ssim_paper=values.mean().item(),
        **{name: figure.mean().item() for name, figure in pixel.items()},
        recovered=(pixel["ssim"] > RECOVERED).double().mean().item(),
        floor=_floors(truth, len(reconstruction), heldout, truth_labels, heldout_labels, seed),
        pairs=tuple(
            map(Pair, pixel_match.tolist(), pixel["ssim"].tolist(), match.tolist(), values.tolist())
        ),
    )


@torch.no_grad()
def paper_ssim(reconstruction: Tensor, truth: Tensor) -> float:
    """`ssim_paper` alone: (m, c, h, w) against (n, c, h, w), both normalised; cheap enough to
    follow a run with.
    """
    return paper_pairing(reconstruction, truth)[1].mean().item()


def paper_pairing(images: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's protocol: each true image's partner (n,) by greedy pairing, and their SSIM (n,).

    Normalised values, not clipped; the data range of a pair is its true image's max − min (1 for a
    flat one, see `contrast`); averaged over channels.
    """
    matrix = pairwise_ssim(truth, images, data_range=contrast(truth))
    match = greedy(matrix)
    return match, matched(matrix, match, otherwise=0.0)


def to_pixels(images: Tensor, normalisation: Normalisation | None) -> Tensor:
    """Normalised images to pixels clipped to [0, 1]."""
    pixels = images if normalisation is None else normalisation.denormalise(images)
    return pixels.clamp(0, 1)


def _pixel_figures(pixels: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The Hungarian pairing of [0, 1] pixels, and SSIM, PSNR and MSE of every true image (n,) under
    it.
    """
    matrix = pairwise_ssim(truth, pixels, data_range=1.0)
    match = hungarian(matrix)
    partner = pixels[match.to(pixels.device)]  # −1 takes any; masked below
    missing = (match == UNMATCHED).to(pixels.device)
    return match, {
        "ssim": matched(matrix, match, otherwise=0.0),
        "psnr": psnr(truth, partner).clamp(max=EXACT).masked_fill(missing, 0.0),
        "mse": mse(truth, partner).masked_fill(missing, 1.0),
    }


def _floors(
    truth: Tensor,
    m: int,
    heldout: Tensor | None,
    labels: Tensor | None,
    heldout_labels: Tensor | None,
    seed: int,
) -> dict[str, float | None]:
    """The paper's protocol on images that saw no weights; m of them, for the wider choice alone
    raises SSIM.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(m, *truth.shape[1:], generator=generator).to(truth)
    floor: dict[str, float | None] = {
        "heldout": None,
        "noise": paper_ssim(noise, truth),
        "class_mean": None,
    }
    if heldout is not None and len(heldout):
        heldout = _like(truth, heldout, "heldout")
        order = torch.randperm(len(heldout), generator=generator)
        chosen = order[torch.arange(m) % len(heldout)].to(
            truth.device
        )  # too few are used again: never too low a floor
        floor["heldout"] = paper_ssim(heldout[chosen], truth)
        floor["class_mean"] = paper_ssim(
            _class_means(heldout, heldout_labels, labels, len(truth)), truth
        )
    return floor


def _class_means(
    heldout: Tensor, heldout_labels: Tensor | None, labels: Tensor | None, n: int
) -> Tensor:
    """The generic image of each true image's class, from held-out data alone: (n, c, h, w)."""
    overall = heldout.mean(0)
    if labels is None or heldout_labels is None:
        return overall.expand(n, *overall.shape)
    known = set(heldout_labels.tolist())
    means = {
        y: heldout[heldout_labels.to(heldout.device) == y].mean(0)
        for y in known & set(labels.tolist())
    }
    return torch.stack([means.get(y, overall) for y in labels.tolist()])


def _like(truth: Tensor, images: Tensor, name: str) -> Tensor:
    """`images` on the device and in the precision of `truth`, once their shapes are known to
    fit.
    """
    if truth.ndim != 4 or not len(truth):
        raise SimudyError(f"truth must be a non-empty (n, c, h, w) batch, not {tuple(truth.shape)}")
    if images.ndim != 4 or not len(images) or images.shape[1:] != truth.shape[1:]:
        wanted = ", ".join(map(str, truth.shape[1:]))
        raise SimudyError(
            f"{name} must be (m, {wanted}) like the true images, not {tuple(images.shape)}"
        )
    return images.detach().to(truth)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
