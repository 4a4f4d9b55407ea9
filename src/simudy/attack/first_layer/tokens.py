"""Which tokens a model of text was trained on, from the displacement of its embedding alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simudy.attack.evidence import Evidence
from simudy.attack.first_layer.span import without_gradients
from simudy.dynamics.optim import SGD, Adagrad, Adam, AdamW, Lion, RMSprop
from simudy.errors import SimudyError

EMBEDDING = "embedding"
_EACH_ALONE = (SGD, Adam, AdamW, RMSprop, Adagrad, Lion)  # an entry's step depends on no other's


def tokens_read(evidence: Evidence) -> Tensor:
    """Whether each token was read in the run ``(v,)``; all, where the evidence cannot tell.

    The gradient of a token's row of the embedding is a sum over the places where it stands. Where
    it stands nowhere that is exactly zero, and the row ends where zero gradients lead: at its
    start, or as far as weight decay takes it. A row that ends elsewhere was read. That a row read
    gets exactly zero all the same is possible and does not happen by chance.

    It cannot tell where weights were rounded or noised on publication, or where a rule mixes the
    entries of a weight (Muon, Adafactor). An output layer tied to the embedding moves every row:
    then all count as read.

    Raises:
        SimudyError: no parameter ``embedding`` of one row a token.
    """
    start = evidence.initial.get(EMBEDDING)
    if start is None or start.dim() != 2 or len(start) != evidence.shape[-1]:
        raise SimudyError(
            f"Method(images='tokens') wants a parameter {EMBEDDING!r} of {evidence.shape[-1]} "
            "rows, one a token: name the model's so, or set Method(images='pixels')"
        )
    if evidence.published != start.dtype or evidence.hidden or not _tells(evidence.recipe):
        return torch.ones(len(start), dtype=torch.bool)
    return (evidence.final[EMBEDDING] != without_gradients(evidence, EMBEDDING)).any(1).cpu()


def _tells(recipe: Any) -> bool:
    return type(recipe.optimizer) in _EACH_ALONE
