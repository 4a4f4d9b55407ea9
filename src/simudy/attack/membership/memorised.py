"""The classical baseline: what a network was trained on it has a low loss at."""

from __future__ import annotations

import torch
from torch import Tensor

from simudy import stopping
from simudy.attack.evidence import Evidence
from simudy.attack.membership.outside import BATCH, RowSpaceTest


@torch.no_grad()
def loss_scores(test: RowSpaceTest, evidence: Evidence, images: Tensor, labels: Tensor) -> Tensor:
    """``(n,)``, minus each image's loss at θf (Yeom et al., 2018): high for members.

    Args:
        test: of the same evidence; norms that mix a batch are at its public statistics.
        images: normalised ``(n, c, h, w)``.
        labels: ``(n,)``.
    """
    criterion, found = evidence.model.criterion, []
    for part, right in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        stopping.check()
        logits = test.ends[1].probe(part)
        # One by one: a criterion may give one loss for a batch.
        found += [
            criterion(logits[i : i + 1], right[i : i + 1].to(logits.device)).mean()
            for i in range(len(part))
        ]
    return -torch.stack(found).double()
