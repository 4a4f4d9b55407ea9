"""Similarity of images, batched and on any device. SSIM equals scikit-image's, which the published
figures use.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from simudy.errors import SimudyError

WINDOW = 7  # scikit-image's default: a uniform 7×7 window, and only where it fits entirely
SAMPLE = WINDOW**2 / (
    WINDOW**2 - 1
)  # turns the window's covariance into the unbiased (sample) covariance
K1, K2 = 0.01, 0.03  # stabilisers of Wang et al. (2004), in units of the data range


class Moments(NamedTuple):
    """What one side of an SSIM needs, kept so that a pairwise matrix computes it once per image."""

    images: Tensor  # (n, c, h, w), float64
    mean: Tensor  # (n, c, h−6, w−6), over each window
    variance: Tensor  # the same shape

    def row(self, i: int) -> "Moments":
        return Moments(*(field[i : i + 1] for field in self))


def ssim(a: Tensor, b: Tensor, *, data_range: float | Tensor) -> Tensor:
    """Structural similarity per image, in [−1, 1], symmetric in `a` and `b`.

    Equals `skimage.metrics.structural_similarity(a, b, data_range=…, channel_axis=0)` to rounding:
    channels are compared one by one and averaged. Accumulates in float64, since windows subtract
    nearly equal squares.

    Args:
        a, b: (n, c, h, w) with broadcasting over n; pixel or normalised values, in units of
            `data_range`.
        data_range: width of the value range, a positive number or one per image (n,).
    Returns: (n,) float64. Raises: SimudyError if a side is shorter than the window. Source: Wang et
    al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, eq. 13.
    """
    return _compare(_moments(a), _moments(b), data_range)


def pairwise_ssim(truth: Tensor, candidates: Tensor, *, data_range: float | Tensor) -> Tensor:
    """SSIM of every true image (n, c, h, w) with every candidate (m, c, h, w) as an (n, m) float64
    matrix.

    `data_range` is a number or one per *true* image (n,). Works one row at a time, so memory grows
    with m alone.
    """
    rows, columns = _moments(truth), _moments(candidates)
    ranges = torch.as_tensor(data_range, dtype=torch.float64, device=truth.device).expand(
        len(truth)
    )
    return torch.stack([_compare(rows.row(i), columns, ranges[i]) for i in range(len(truth))])


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error per image: (n, c, h, w) with broadcasting over n -> (n,) float64."""
    return (a.double() - b.double()).square().mean(dim=(-3, -2, -1))


def psnr(a: Tensor, b: Tensor, *, data_range: float | Tensor = 1) -> Tensor:
    """Peak signal-to-noise ratio per image in decibels, 10·log10(range²/mse): (n, c, h, w) -> (n,);
    equal images: inf.

    Average over images afterwards; pooling the batch's error first gives another number.
    """
    peak = torch.as_tensor(data_range, dtype=torch.float64, device=a.device)
    return 10 * torch.log10(peak.square() / mse(a, b))


def contrast(images: Tensor) -> Tensor:
    """max − min of each image, the paper's data range: (n, c, h, w) -> (n,).

    A flat image has none, and SSIM would be 0/0. Its range is taken as 1 instead (one standard
    deviation in normalised space), so that the same flat image scores 1 and anything textured about
    0.
    """
    spread = images.amax(dim=(1, 2, 3)) - images.amin(dim=(1, 2, 3))
    return torch.where(spread > 0, spread, torch.ones_like(spread))


def _moments(images: Tensor) -> Moments:
    _require_window(images)
    images = images.double()
    mean = _window_mean(images)
    return Moments(images, mean, SAMPLE * (_window_mean(images * images) - mean * mean))


def _compare(a: Moments, b: Moments, data_range: float | Tensor) -> Tensor:
    spread = torch.as_tensor(data_range, dtype=torch.float64, device=a.mean.device).reshape(
        -1, 1, 1, 1
    )
    c1, c2 = (K1 * spread).square(), (K2 * spread).square()
    covariance = SAMPLE * (_window_mean(a.images * b.images) - a.mean * b.mean)
    luminance = (2 * a.mean * b.mean + c1) / (a.mean.square() + b.mean.square() + c1)
    structure = (2 * covariance + c2) / (a.variance + b.variance + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _window_mean(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, WINDOW, stride=1)  # (n, c, h, w) -> (n, c, h−6, w−6)


def _require_window(images: Tensor) -> None:
    height, width = images.shape[-2:]
    if min(height, width) < WINDOW:
        raise SimudyError(
            f"SSIM needs images of at least {WINDOW}×{WINDOW}, these are {height}×{width}: "
            "enlarge both sides alike before scoring, or use `mse` and `psnr` alone"
        )
