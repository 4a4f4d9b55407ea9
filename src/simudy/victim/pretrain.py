"""A network that has seen other images before: a plain torch loop, whose outcome is kept for the
next run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from simudy import stopping
from simudy.errors import SimudyError
from simudy.tensors import train_once

log = logging.getLogger(__name__)


_SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)


@dataclass
class Pretraining:
    """How. The learning rate falls along one cosine.

    Args:
        epochs, batch_size: of a run over all images, in a new order every epoch.
        optimizer: ``(parameters) -> torch optimizer``.
        new_head: give the last linear layer fresh weights afterwards, as when fine-tuning to a new
            task.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer] = _SGD
    new_head: bool = True


def pretrain(
    module: nn.Module, images: Tensor, labels: Tensor, how: Pretraining, *, cache: Path, seed: int
) -> None:
    """Train ``module`` in place on normalised images ``(m, c, h, w)``, or take what ``cache``
    holds.

    Args:
        cache: a file whose name stands for everything the outcome depends on.

    Raises:
        SimudyError: there are no images.
    """
    if not len(images):
        raise SimudyError(
            "there are no images to pretrain on: choose other data, or set Pretraining(epochs=0)"
        )

    def train() -> None:
        _fit(module, images, labels, how, torch.Generator().manual_seed(seed))

    train_once(module, train, cache=cache, kind="pretrained weights", again="pretraining again")
    if how.new_head:
        _renew_head(module, seed)


def _fit(
    module: nn.Module, images: Tensor, labels: Tensor, how: Pretraining, rng: torch.Generator
) -> None:
    optimizer = how.optimizer(module.parameters())
    schedule = CosineAnnealingLR(optimizer, how.epochs * -(-len(images) // how.batch_size))
    module.train()
    for epoch in range(how.epochs):
        right = torch.zeros((), device=images.device)
        for rows in (
            torch.randperm(len(images), generator=rng).to(images.device).split(how.batch_size)
        ):
            stopping.check()
            logits = module(images[rows])
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            schedule.step()
            right += (logits.argmax(1) == labels[rows]).sum()
        log.info(
            "pretraining: epoch %d of %d, accuracy %.3f",
            epoch + 1,
            how.epochs,
            right.item() / len(images),
        )


def _renew_head(module: nn.Module, seed: int) -> None:
    heads = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not heads:
        raise SimudyError("the model has no linear layer to renew: set Pretraining(new_head=False)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the same head whether the rest was trained or recalled
        heads[-1].reset_parameters()
