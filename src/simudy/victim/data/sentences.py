"""Short sentences, made here: nothing to download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from simudy.ranges import COUNT, NUMBER_OF
from simudy.victim.data.images import ImageSet, Normalisation, Splits

ALPHABET = "abcdefghijklmnopqrstuvwxyz "
_WORDS = """
we you they she one who nobody some had saw took lost found made sold kept hid drew left the a my
our his no red old big quiet wet kind second house dog song key fox jar boat letter vow bird queen
quiz river game box again today soon far away here in by of over
"""


@dataclass
class Sentences:
    """Words in random order, cut to a length, a character a token; drawn from the seed.

    A sentence is an image ``(1, length, 27)``: each row has a 1 at its character, of a–z and space.

    Args:
        n: sentences of the victim.
        heldout: kept as controls; None: as many as n.
        pretrain: to pretrain on.
        length: characters of a sentence.
    """

    n: Annotated[int, COUNT] = 8
    heldout: Annotated[int | None, NUMBER_OF] = None
    pretrain: Annotated[int, NUMBER_OF] = 0
    length: Annotated[int, COUNT] = 16

    def load(self, *, seed: int) -> Splits:
        """Three disjoint draws; no normalisation."""
        heldout = self.n if self.heldout is None else self.heldout
        counts = [self.n, heldout, self.pretrain]
        generator = torch.Generator().manual_seed(seed)
        lines = [_line(self.length, generator) for _ in range(sum(counts))]
        victim, held, rest = (_as_images(part) for part in one_hot(lines).split(counts))
        public = rest if self.pretrain else None
        return Splits(victim, held, public, Normalisation((0.0,), (1.0,)), alphabet=ALPHABET)


def one_hot(lines: list[str]) -> Tensor:
    """Sentences of one length as ``(n, 1, length, 27)``, float32."""
    numbers = torch.tensor([[ALPHABET.index(character) for character in line] for line in lines])
    return F.one_hot(numbers, len(ALPHABET))[:, None].float()


def _line(length: int, generator: torch.Generator) -> str:
    words = _WORDS.split()
    chosen = torch.randint(len(words), (length,), generator=generator)
    return " ".join(words[i] for i in chosen.tolist())[:length]


def _as_images(texts: Tensor) -> ImageSet:
    labels = torch.zeros(len(texts), dtype=torch.int64)
    return ImageSet(texts, labels, ("written", "not written"))
