"""A module made pure: logits and loss as functions of explicit parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simudy.dynamics.ambient import OneThread
from simudy.dynamics.model.batchnorm import fold_batchnorm
from simudy.dynamics.model.criterion import check_losses
from simudy.dynamics.model.exact import refuse_gradient_hooks, refuse_inexact, rewrite
from simudy.dynamics.model.operations import exact_operations
from simudy.dynamics.model.running import moving, tracking
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


class StatelessModel:
    """A pure function made of an ``nn.Module`` by ``torch.func.functional_call``; the module is
    never mutated.

    What training moves is in ``params``; what it leaves alone, buffers and parameters with
    ``requires_grad=False``, is in ``buffers``. Modules in eval mode use their buffers (a frozen
    BatchNorm, as in the paper); a BatchNorm in train mode normalises by the batch, and its running
    statistics move in ``moved_buffers`` alone. Attention runs on the math kernel, the only one with
    second derivatives.

    Args:
        module: any deterministic module ``images -> logits``. Its modes (train/eval) are kept as
            they are.
        criterion: ``(logits, labels) -> per-sample losses`` of shape ``(n,)``, or the loss of the
            batch as a scalar, which takes no sample weights. Default: cross-entropy, whose labels
            are class indices ``(n,)`` or probabilities ``(n, classes)``.

    Raises:
        SimudyError: a layer draws random numbers (dropout in train mode), or has no exact second
            derivative.

    Example:
        >>> model = StatelessModel(nn.Linear(4, 2))
        >>> model(model.params, torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self, module: nn.Module, *, criterion: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        refuse_inexact(module)
        refuse_gradient_hooks(module.named_parameters())
        self.module = copy.deepcopy(module)
        self._tracking = tracking(self.module)
        rewrite(self.module)
        fold_batchnorm(self.module)
        self.given_criterion = criterion
        self.criterion = criterion or _cross_entropy
        held = {name: p.detach().clone() for name, p in module.named_parameters()}
        frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
        self._own_buffers = {name for name, _ in module.named_buffers()}
        self.params: Params = {name: p for name, p in held.items() if name not in frozen}
        self.buffers: Params = {
            **{name: b.detach().clone() for name, b in module.named_buffers()},
            **{name: held[name] for name in held if name in frozen},
        }
        self._live = {
            f"{prefix}.{name}".lstrip(".")
            for prefix, layer in module.named_modules()
            for name in (layer._buffers if layer.training else ())
        }
        self._one_thread = OneThread()
        self._training = any(m.training for m in self.module.modules())

    def __call__(self, params: Params, images: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of ``images`` (normalised as in training) under ``params``."""
        # Images with their channels innermost: torch's CPU convolutions of few channels then write
        # out of bounds in their second derivative.
        # functional_call puts the parameters into the module while it runs.
        with exact_operations(), self._one_thread:
            return torch.func.functional_call(
                self.module, {**self._fresh(self.buffers), **params}, (images.contiguous(),)
            )

    def loss(self, params: Params, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean criterion over ``batch = (images, labels)``, or ``mean(w·ℓ)`` for ``(images, labels,
        w)``: a scalar.

        Raises:
            SimudyError: the criterion gives neither one loss per sample nor, without weights, one
                for the batch.
        """
        images, labels, *weights = batch
        outputs = self(params, images)
        with exact_operations():
            losses = self.criterion(outputs, labels)
            check_losses(losses, *weights)
            return (losses * weights[0]).mean() if weights else losses.mean()

    def moved_buffers(self, params: Params, batch: Any, buffers: Params) -> Params:
        """``buffers`` after a call on ``batch = (images, …)``, as torch leaves them in train mode:
        running statistics, counts, and what a module of one's own keeps. Differentiable.
        """
        held = self._fresh(buffers)
        with exact_operations(), self._one_thread, moving(self.module, self._tracking, held):
            given = {**held, **params}
            torch.func.functional_call(self.module, given, (batch[0].contiguous(),))
        return {name: held[name] if name in self._live else b for name, b in buffers.items()}

    def to(self, *args: Any, **kwargs: Any) -> StatelessModel:
        """A copy on another device or dtype, as ``nn.Module.to``."""
        module = copy.deepcopy(self.module).to(*args, **kwargs)
        move = getattr(self.given_criterion, "to", None)  # class weights go along
        criterion = move(*args, **kwargs) if move else self.given_criterion
        model = StatelessModel(module, criterion=criterion)
        model._tracking = self._tracking  # which the copy has been told not to do by itself
        return model

    def _fresh(self, buffers: Params) -> Params:
        # A module in train mode may write to its buffers (a counter, an average): let it write to a
        # copy.
        if not self._training:
            return buffers
        own = self._own_buffers
        return {name: b.clone() if name in own else b for name, b in buffers.items()}


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if not isinstance(logits, Tensor):
        raise SimudyError(
            f"the module gives a {type(logits).__name__}, which cross-entropy does not take: give "
            "criterion=lambda outputs, labels: …, which picks the logits out of it"
        )
    return F.cross_entropy(logits, labels, reduction="none")
