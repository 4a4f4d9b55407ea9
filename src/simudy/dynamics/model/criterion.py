"""A loss of ``torch.nn`` as per-sample losses whose mean is what torch gives for the batch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from simudy.errors import SimudyError

_BY_CLASS = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)  # they take class indices
# towards real numbers; and of several outputs each by itself between 0 and 1
REAL = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
_EACH_ALONE = (nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
_WEIGHTED_MEAN = (nn.CrossEntropyLoss, nn.NLLLoss)  # they divide by the weights of the batch


@dataclass
class PerSample:
    """``(outputs, labels) -> (n,)``.

    The mean over the batch is the loss itself, also where torch divides by the class weights of the
    batch or averages over several outputs.

    Args:
        loss: of ``torch.nn``, with ``reduction`` mean or sum.

    Raises:
        SimudyError: the loss has no ``reduction``, or labels do not fit the outputs.

    Example:
        >>> import torch
        >>> loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]), label_smoothing=0.1)
        >>> outputs, labels = torch.tensor([[1.0, 2.0], [0.5, 0.1]]), torch.tensor([0, 1])
        >>> (PerSample(loss)(outputs, labels).mean() - loss(outputs, labels)).abs().item() < 1e-6
        True
    """

    loss: nn.Module

    def __post_init__(self) -> None:
        if getattr(self.loss, "reduction", None) not in ("mean", "sum"):
            raise SimudyError(
                f"{type(self.loss).__name__} has no reduction=mean or sum: take a loss of torch.nn "
                "with one of these"
            )
        self._each = copy.deepcopy(self.loss)
        self._each.reduction = "none"  # type: ignore[assignment]

    @property
    def independent(self) -> bool:
        """Whether several outputs of one image are judged each by itself, as of several labels."""
        return isinstance(self.loss, _EACH_ALONE)

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        by_class = isinstance(self.loss, _BY_CLASS)
        if isinstance(self.loss, _BY_CLASS[1:]) and labels.is_floating_point():
            raise SimudyError(
                f"{type(self.loss).__name__} takes class numbers, no probabilities: set "
                "Method(labels='balanced'), or "
                "StatelessModel(criterion=torch.nn.CrossEntropyLoss)"
            )
        targets = labels if by_class else targets_like(outputs, labels)
        if isinstance(self.loss, nn.SoftMarginLoss) and not labels.is_floating_point():
            targets = 2 * targets - 1  # it takes -1 and 1
        losses = self._each(outputs, targets)
        if self.loss.reduction == "sum":
            return (
                losses.flatten(1).sum(1) * len(losses) if losses.dim() > 1 else losses * len(losses)
            )
        losses = losses.flatten(1).mean(1) if losses.dim() > 1 else losses
        return losses * self._normalisation(labels)

    def _normalisation(self, labels: Tensor) -> Tensor | float:
        """n over the sum of the weights of the batch's classes, where torch divides by it."""
        weight = getattr(self.loss, "weight", None)
        if (
            weight is None
            or labels.is_floating_point()
            or not isinstance(self.loss, _WEIGHTED_MEAN)
        ):
            return 1.0
        return len(labels) / weight[labels].sum()

    def to(self, *args: object, **kwargs: object) -> PerSample:
        """The same with its class weights elsewhere."""
        return PerSample(copy.deepcopy(self.loss).to(*args, **kwargs))  # type: ignore[arg-type]


def targets_like(outputs: Tensor, labels: Tensor) -> Tensor:
    """Labels as numbers of the outputs' shape: real ones as they are, classes as 0 and 1.

    Args:
        outputs: ``(n,)`` or ``(n, k, …)``.
        labels: class indices ``(n,)``, probabilities ``(n, classes)``, or real targets that have as
            many numbers as the outputs.

    Raises:
        SimudyError: they fit in none of these ways.
    """
    one_each = outputs.numel() == len(outputs)
    if not labels.is_floating_point():
        if one_each:
            return labels.to(outputs).view_as(outputs)
        if outputs.dim() == 2:
            return F.one_hot(labels, outputs.shape[1]).to(outputs)
    elif labels.numel() == outputs.numel():
        return labels.to(outputs).view_as(outputs)
    elif one_each and labels.dim() == 2 and labels.shape[1] == 2:
        return labels[:, 1].to(outputs).view_as(outputs)
    raise SimudyError(
        f"the loss compares outputs of shape {tuple(outputs.shape)} with labels of shape "
        f"{tuple(labels.shape)}: set Evidence(classes=…) to the network's outputs (None for "
        "real targets)"
    )


def check_losses(losses: Any, weights: Tensor | None = None) -> None:
    """Raise a SimudyError unless ``losses`` are ``(n,)``, and so are the weights, or, without
    weights, a scalar.
    """
    if not isinstance(losses, Tensor):
        raise SimudyError(
            f"the criterion gives a {type(losses).__name__}, which has no derivative: it must "
            "return a tensor, one loss per sample"
        )
    shape = tuple(losses.shape)
    if len(shape) > 1:
        raise SimudyError(
            f"the criterion gives losses of shape {shape}, several per sample: have it return one, "
            "such as losses.flatten(1).mean(1)"
        )
    if weights is None:
        return
    if not shape:
        raise SimudyError(
            "the criterion gives one loss for the whole batch, which sample weights cannot weigh: "
            "have it return one per sample (reduction='none'), or leave the weights out"
        )
    if tuple(weights.shape) != shape:
        raise SimudyError(
            f"sample weights of shape {tuple(weights.shape)} for losses of shape {shape}: give one "
            f"weight per sample, of shape {shape}"
        )
