"""A prior that was learned: public images tell what an image looks like.

Romano, Elad & Milanfar, The little engine that could: regularization by denoising (RED), SIAM J.
Imaging Sciences 10 (2017).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simudy import stopping

log = logging.getLogger(__name__)

_BATCH, _RATE, _TOLD_EVERY = 64, 2e-3, 100
_NOISE = 0.05, 1.0  # σ that it learns to take out, in normalised units


class Denoiser(nn.Module):
    """Normalised images ``(n, c, h, w)``, of any size, without noise of a given σ: a small U-Net
    (Ronneberger et al. 2015) that gives the noise.
    """

    def __init__(self, channels: int, *, width: int = 32) -> None:
        super().__init__()
        w = width
        self.fine = _twice(channels + 1, w, w)
        self.middle = _twice(w, 2 * w, 2 * w, stride=2)
        self.coarse = _twice(2 * w, 4 * w, 4 * w, stride=2)
        self.deep = _twice(4 * w, 4 * w, 2 * w)
        self.up = _twice(4 * w, 2 * w, w)
        self.out = nn.Sequential(_layer(2 * w, w), nn.ReLU(), _layer(w, channels))

    def forward(self, images: Tensor, sigma: Tensor) -> Tensor:
        """Images of ``images``, whose noise has deviations ``sigma`` ``(n,)``."""
        level = sigma[:, None, None, None].expand(-1, 1, *images.shape[2:])
        fine = self.fine(torch.cat([images, level], 1))
        middle = self.middle(fine)
        coarse = self.deep(self.coarse(middle))
        up = self.up(torch.cat([_as_large(coarse, middle), middle], 1))
        return images - self.out(torch.cat([_as_large(up, fine), fine], 1))


@torch.enable_grad()
def fit(denoiser: Denoiser, images: Tensor, *, steps: int, seed: int) -> None:
    """Train ``denoiser`` in place on normalised images ``(m, c, h, w)``, by mean squared error.

    Args:
        steps: of 64 images each, mirrored or not, under white or smoothed noise.
        seed: of images and noise.
    """
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        stopping.check()
        loss = _loss(denoiser, images, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % _TOLD_EVERY == 0:
            error = math.sqrt(loss.item())
            log.info("denoiser: step %d of %d, error %.3f of σ", step, steps, error)


class Red:
    """½ mean (x̂ − D(x̂))², D a denoiser whose own derivative is left out, so that the slope is the
    residual x̂ − D(x̂), as in RED.

    Args:
        make: gives the denoiser; called when the first image is judged.
        sigma: of the noise to take out, in normalised units.
    """

    def __init__(self, make: Callable[[], Denoiser], *, sigma: float) -> None:
        self._make, self.sigma = make, sigma

    @cached_property
    def denoiser(self) -> Denoiser:
        return self._make().eval()

    def __call__(self, images: Tensor) -> Tensor:
        return 0.5 * (images - self.cleaned(images)).square().mean()

    @torch.no_grad()
    def cleaned(self, images: Tensor) -> Tensor:
        """D(x̂), normalised ``(n, c, h, w)``."""
        denoiser, sigma = self.denoiser.to(images), images.new_full((len(images),), self.sigma)
        return denoiser(images, sigma)


def _loss(denoiser: Denoiser, images: Tensor, rng: torch.Generator) -> Tensor:
    """Mean squared error over σ², of a random batch."""
    rows = torch.randint(len(images), (_BATCH,), generator=rng)
    clean = images[rows.to(images.device)]
    mirrored = torch.rand(_BATCH, 1, 1, 1, generator=rng) < 0.5
    clean = torch.where(mirrored.to(clean.device), clean.flip(-1), clean)
    sigma = torch.empty(_BATCH).uniform_(*_NOISE, generator=rng).to(clean)
    noise = sigma[:, None, None, None] * _noise(clean.shape, rng).to(clean)
    error = (denoiser(clean + noise, sigma) - clean).square().mean((1, 2, 3))
    return (error / sigma.square()).mean()


def _noise(shape: torch.Size, rng: torch.Generator) -> Tensor:
    """Of deviation 1, half of the images' white and half smooth: found images err in both ways."""
    white = torch.randn(shape, generator=rng)
    smooth = 3 * F.avg_pool2d(white, 3, stride=1, padding=1)
    return torch.cat([white[::2], smooth[1::2]])


def _twice(taken: int, between: int, given: int, *, stride: int = 1) -> nn.Sequential:
    first, second = _layer(taken, between, stride=stride), _layer(between, given)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


def _layer(taken: int, given: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(taken, given, 3, stride=stride, padding=1)


def _as_large(small: Tensor, large: Tensor) -> Tensor:
    return F.interpolate(small, size=large.shape[2:])
