"""What numbers an image is sought in: its pixels, its frequencies, or its coefficients in the first
layer's span.

The image is the same; the outer optimizer's steps are not. Each kind says what shape its latent
has, which images the latent stands for and what the simulated run trains on. All latents have
entries of about the size of a normalised pixel, so the same noise and step sizes serve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from simudy.attack.evidence import Evidence
from simudy.attack.first_layer.span import NoSpan, Span
from simudy.attack.first_layer.tokens import tokens_read
from simudy.attack.prior.colours import along, opponent
from simudy.errors import SimudyError

IMAGES = ("auto", "pixels", "frequencies", "span", "tokens")
_OPPONENT_STD = [1.0, 0.35, 0.15]  # roughly what natural images have along them

_RARE = 1e-6  # a share that stands for none


class Coordinates:
    """Base: a linear map from a latent ``(n, *shape)`` to normalised images ``(n, c, h, w)``."""

    shape: tuple[int, ...]  # of one image's latent

    @property
    def count(self) -> int | None:
        """The number of training images, if the coordinates tell it."""
        return None

    def reduced(self, evidence: Evidence) -> Evidence:
        """The run as the coordinates' ``network_inputs`` take part in it."""
        return evidence

    def decode(self, latent: Tensor) -> Tensor:
        """The images that ``latent`` stands for."""
        raise NotImplementedError

    def network_inputs(self, latent: Tensor) -> Tensor:
        """What the simulated run trains on: the images, unless the run is reduced."""
        return self.decode(latent)

    def encode(self, images: Tensor) -> Tensor:
        """The latent of given images, or of those nearest to them in this space."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pixels(Coordinates):
    """Normalised pixels ``(c, h, w)``."""

    shape: tuple[int, ...]

    def decode(self, latent: Tensor) -> Tensor:
        return latent

    def encode(self, images: Tensor) -> Tensor:
        return images


@dataclass(frozen=True)
class Frequencies(Coordinates):
    """Cosine-transform coefficients ``(c, h, w)`` by (1 + f)^−decay, and colours along opponent
    axes.

    Unit noise in the latent is an image of unit variance with the spectrum of natural ones, and an
    optimizer that moves every entry alike, as Adam does, settles the coarse before the fine. Field,
    Relations between the statistics of natural images and the response properties of cortical
    cells, JOSA A 1987 (amplitudes fall as 1/f); Olah et al., Feature Visualization, Distill 2017
    (the same change of variables).

    Args:
        shape: ``(c, h, w)``.
        decay: 0 treats all frequencies alike; f counts half-waves across the image.
    """

    shape: tuple[int, ...]
    decay: float = 1.5

    def decode(self, latent: Tensor) -> Tensor:
        down, across, colours, scale = _maps(self, latent.dtype, latent.device)
        return along(colours.mT, down.mT @ (latent * scale) @ across)

    def encode(self, images: Tensor) -> Tensor:
        down, across, colours, scale = _maps(self, images.dtype, images.device)
        return down @ along(colours, images) @ across.mT / scale


@lru_cache(maxsize=8)  # once: a copy to a GPU in every outer step would make the step wait for it
def _maps(frequencies: Frequencies, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Orthonormal maps to frequencies ``(h, h)``, ``(w, w)`` and to opponent colours ``(c, c)``,
    and the scale.
    """
    c, h, w = frequencies.shape
    colours = opponent() if c == 3 else torch.eye(c)
    maps = _cosines(h), _cosines(w), colours, _scale(frequencies)
    return tuple(m.to(device, dtype) for m in maps)


def _scale(frequencies: Frequencies) -> Tensor:
    """How large each coefficient is expected to be ``(c, h, w)``: root mean square 1."""
    c, h, w = frequencies.shape
    f = (torch.arange(h)[:, None].square() + torch.arange(w).square()).double().sqrt()
    colour = torch.tensor(_OPPONENT_STD if c == 3 else [1.0] * c, dtype=torch.float64)
    scale = colour[:, None, None] * (1 + f) ** -frequencies.decay
    return scale / scale.square().mean().sqrt()


@dataclass(frozen=True)
class SpanCoordinates(Coordinates):
    """SpanCoordinates ``(r,)`` in the span, over a factor that makes them as large as pixels."""

    span: Span

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.span.rank,)

    @property
    def count(self) -> int:
        return self.span.rank

    def reduced(self, evidence: Evidence) -> Evidence:
        return self.span.reduce(evidence)

    @property
    def scale(self) -> float:
        return math.sqrt(self.span.basis.shape[1] / self.span.rank)

    def decode(self, latent: Tensor) -> Tensor:
        return self.span.decode(self.network_inputs(latent))

    def network_inputs(self, latent: Tensor) -> Tensor:
        return self.scale * latent

    def encode(self, images: Tensor) -> Tensor:
        return self.span.encode(images) / self.scale


@dataclass(frozen=True, eq=False)
class Tokens(Coordinates):
    """Logits ``(1, t, v)`` whose softmax is each position's share of every token: text as the
    soft one-hot rows of an image.

    Args:
        shape: ``(1, t, v)``.
        allowed: which tokens a position may hold ``(t, v)``.
    """

    shape: tuple[int, ...]
    allowed: Tensor

    @classmethod
    def of(cls, evidence: Evidence) -> Tokens:
        """With the tokens that were read; the last position may hold any, for a model that guesses
        the next token reads all but the last.

        Raises:
            SimudyError: the evidence has no embedding of tokens.
        """
        read = tokens_read(evidence)
        allowed = read.expand(evidence.shape[-2], -1).clone()
        allowed[-1] = True
        return cls(tuple(evidence.shape), allowed)

    def decode(self, latent: Tensor) -> Tensor:
        allowed = self.allowed.to(latent.device)
        return latent.masked_fill(~allowed, -torch.inf).softmax(-1)

    def encode(self, images: Tensor) -> Tensor:
        return images.clamp(min=_RARE).log()


def coordinates_named(name: str, evidence: Evidence, *, decay: float = 1.5) -> Coordinates:
    """The coordinates called ``name`` for the evidence's images.

    ``auto`` is the span where the first layer has one, else frequencies, or pixels where images are
    no planes.

    Raises:
        SimudyError: no such name, or the first layer has no span.
    """
    if name == "auto":
        return _fitting(evidence, decay)
    if name == "pixels":
        return Pixels(tuple(evidence.shape))
    if name == "frequencies":
        return Frequencies(tuple(evidence.shape), decay)
    if name == "span":
        return SpanCoordinates(Span.of(evidence))
    if name == "tokens":
        return Tokens.of(evidence)
    raise SimudyError(f"no image mode {name!r}: choose from {', '.join(IMAGES)}")


def _fitting(evidence: Evidence, decay: float) -> Coordinates:
    try:
        return SpanCoordinates(Span.of(evidence))
    except NoSpan:
        planes = len(evidence.shape) == 3
        return coordinates_named("frequencies" if planes else "pixels", evidence, decay=decay)


def _cosines(size: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) ``(size, size)``: row f has f half-waves."""
    f, place = (
        torch.arange(size, dtype=torch.float64)[:, None],
        torch.arange(size, dtype=torch.float64) + 0.5,
    )
    waves = torch.cos(math.pi * f * place / size) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves
