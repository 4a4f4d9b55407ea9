"""A module made pure: logits and loss as functions of explicit parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simudy.dynamics import tree
from simudy.dynamics.ambient import OneThread
from simudy.dynamics.custom_vjp import unwrapped
from simudy.dynamics.model.batchnorm import fold_batchnorm
from simudy.dynamics.model.criterion import check_losses
from simudy.dynamics.model.exact import refuse_gradient_hooks, refuse_inexact, rewrite
from simudy.dynamics.model.operations import exact_operations
from simudy.dynamics.model.rounded import RoundedConvolutions
from simudy.dynamics.model.running import moving, statistics_of, tracking
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
            for name, buffer in layer._buffers.items()
            if layer.training and buffer is not None
        }
        statistics = {part for name in self._tracking for part in statistics_of(name)}
        self._unmet = bool((self._live & self._own_buffers) - statistics)
        self._one_thread = OneThread()
        self._training = any(m.training for m in self.module.modules())
        self._rounding: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __call__(self, params: Params, images: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of ``images`` (normalised as in training) under ``params``."""
        if self._unmet:
            self._unmet = False
            self._refuse_memory(params, images)
        return self._called(params, images, self._fresh(self.buffers))

    def loss(self, params: Params, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean criterion over ``batch = (images, labels)``, or ``mean(w·ℓ)`` for ``(images, labels,
        w)``: a scalar.

        Raises:
            SimudyError: the criterion gives neither one loss per sample nor, without weights, one
                for the batch.
        """
        images, labels, *weights = _parts(batch)
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
        with self._one_thread, moving(self.module, self._tracking, held):
            self._called(params, _parts(batch)[0], dict(held))
        return {name: held[name] if name in self._live else b for name, b in buffers.items()}

    def check_buffers(self, buffers: Any) -> None:
        """Raise a SimudyError if a run cannot go on from ``buffers``: those that move have to be
        there, and the others to be as they are here, for the loss reads them.
        """
        given = dict(buffers) if isinstance(buffers, Mapping) else {}
        for name, here in self.buffers.items():
            problem = None
            if name not in given:
                problem = "are missing" if name in self._live else None
            elif given[name].shape != here.shape:
                problem = f"have shape {tuple(given[name].shape)}, not {tuple(here.shape)}"
            elif name not in self._live and not _are_equal(given[name], here):
                problem = "are others than the model's, and do not move in this run"
            if problem:
                raise SimudyError(
                    f"buffers {name!r} {problem}: give model.buffers, or what a run of this model "
                    "returned"
                )

    def to(self, *args: Any, **kwargs: Any) -> StatelessModel:
        """A copy on another device or dtype, as ``nn.Module.to``."""
        module = copy.deepcopy(self.module).to(*args, **kwargs)
        move = getattr(self.given_criterion, "to", None)  # class weights go along
        criterion = move(*args, **kwargs) if move else self.given_criterion
        model = StatelessModel(module, criterion=criterion)
        model._rounding = self._rounding
        model._tracking = self._tracking  # which the copy has been told not to do by itself
        return model

    def rounded(self) -> StatelessModel:
        """A view of this model whose convolutions multiply factors rounded to bfloat16; see
        ``RoundedConvolutions``.
        """
        view = copy.copy(self)
        view._rounding = RoundedConvolutions
        return view

    def _called(self, params: Params, images: Tensor, buffers: Params) -> Any:
        # Images with their channels innermost: torch's CPU convolutions of few channels then write
        # out of bounds in their second derivative.
        # functional_call puts the parameters into the module while it runs.
        with exact_operations(), self._rounding(), self._one_thread:
            return torch.func.functional_call(
                self.module, {**buffers, **params}, (images.contiguous(),)
            )

    def _refuse_memory(self, params: Params, images: Tensor) -> None:
        """A run calls the module with the buffers of its start: what it writes, it may not read."""
        moved = self.moved_buffers(params, (images, images), self.buffers)
        written = [
            name for name in sorted(self._live) if not _are_equal(moved[name], self.buffers[name])
        ]
        first, second = (
            tree.leaves(self._called(params, images, self._fresh(buffers)))
            for buffers in (self.buffers, moved)
        )
        if not all(map(_are_equal, first, second)):
            raise SimudyError(
                f"the module computes with what it has itself written ({', '.join(written)}), "
                "which a simulated run does not carry into its steps: put the layer in eval mode, "
                "or make it a parameter or part of the batch"
            )

    def _fresh(self, buffers: Params) -> Params:
        # A module in train mode may write to its buffers (a counter, an average): let it write to a
        # copy.
        if not self._training:
            return buffers
        own = self._own_buffers
        return {name: b.clone() if name in own else b for name, b in buffers.items()}


def _are_equal(ours: Tensor, theirs: Tensor) -> bool:
    if ours is theirs:
        return True
    a, b = unwrapped(ours).detach(), unwrapped(theirs).detach()
    return bool(((a == b) | ((a != a) & (b != b))).all())  # a NaN is itself


def _parts(batch: Any) -> Sequence[Tensor]:
    """Images and labels, and weights where there are any."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise SimudyError(
            f"a batch is a {type(batch).__name__}{size}: StatelessModel's loss takes "
            "(images, labels) or (images, labels, weights); for others, write "
            "loss(params, batch) around model(params, images)"
        )
    if not isinstance(batch[0], Tensor):
        raise SimudyError(
            f"the images of a batch are a {type(batch[0]).__name__}: give a tensor, as "
            "torch.as_tensor makes one"
        )
    return batch


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if not isinstance(logits, Tensor):
        raise SimudyError(
            f"the module gives a {type(logits).__name__}, which cross-entropy does not take: give "
            "criterion=lambda outputs, labels: …, which picks the logits out of it"
        )
    return F.cross_entropy(logits, labels, reduction="none")
