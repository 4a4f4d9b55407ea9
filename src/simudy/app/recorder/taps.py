"""The hooks that look on while somebody else's script trains. They change nothing in its run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simudy.app.recorder.seen_loss import LossTap, SeenLoss
from simudy.app.recorder.seen_run import Album, Batch, Step, Trail
from simudy.dynamics.model import StatelessModel
from simudy.dynamics.optim import from_torch
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

_PRECISE = (torch.float32, torch.float64)


class Taps:
    """What a run shows.

    Attributes:
        steps: all that the optimizer took.
        album: the images.
        trail: the weights along the way.
        module: a copy of the model as it was at its first training batch, in its modes.
        optimizer: a copy of the optimizer as it was at the beginning.
        trouble: why recording stopped, or None.

    Raises:
        SimudyError: the optimizer or the model is one that no simulation can follow.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._live = model, optimizer
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.named = {k: p for k, p in model.named_parameters() if id(p) in held}
        _require_precise(self.named)
        from_torch(optimizer, model)  # to be refused before a step is taken
        self.optimizer = _as_it_stands(optimizer)
        self.module: nn.Module = copy.deepcopy(model)
        self.steps: list[Step] = []
        self.album, self.trail = Album(), Trail()
        self.trouble: str | None = None
        self._modes: Any = None
        self._images: Tensor | None = None
        self._pending: list[Batch] = []
        self._made: dict[str, Tensor] = {}
        self._used: Tensor | None = None

    @property
    def params(self) -> Params:
        """What is trained, as it is now."""
        return {k: p.detach() for k, p in self.named.items() if p.requires_grad}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The hooks are in place."""
        handles = [
            self._model.register_forward_pre_hook(self._guarded(self._forward), with_kwargs=True),
            self._live.register_step_pre_hook(self._guarded(self._before_step)),
            self._live.register_step_post_hook(self._guarded(self._after_step)),
        ]
        for name, p in self.named.items():
            look = self._guarded(partial(self._gradient, name))
            if p.requires_grad:
                handles.append(p.register_post_accumulate_grad_hook(look))
        with ExitStack() as stack:
            for handle in handles:
                stack.callback(handle.remove)
            stack.enter_context(LossTap(self._guarded(self._loss)))
            yield

    def _guarded(self, look: Any) -> Any:
        """Look until something cannot be recorded. Before the first step that is an error, later
        it waits until the run is over, which it must not cost.
        """

        def hook(*args: Any) -> None:
            if self.trouble is not None:
                return
            try:
                with torch._C.DisableTorchFunction():
                    look(*args)
            except SimudyError as error:
                if not self.steps:
                    raise
                self.trouble = f"in step {len(self.steps) + 1}, {error}"

        return hook

    def _forward(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise SimudyError(
                "autocast is on (AMP), whose roundings no simulation repeats: record a run without "
                "it"
            )
        if self._modes is None:
            self._begin()
        elif _modes(self._model) != self._modes:
            raise SimudyError(
                "a layer goes from train to eval mode or back, or a parameter is frozen or thawed: "
                "record each part of the run by itself"
            )
        self._images = _images_among([*args, *kwargs.values()]).detach().clone()

    def _begin(self) -> None:
        """The run starts from here."""
        self.module.load_state_dict(self._model.state_dict())
        for ours, theirs in zip(self.module.modules(), self._model.modules(), strict=True):
            ours.training = theirs.training
        for name, p in self.module.named_parameters():
            p.requires_grad_(name in self.params)
        StatelessModel(self.module)  # to be refused before a step is taken
        self._modes = _modes(self._model)

    def _loss(self, call: SeenLoss, labels: Tensor, result: Tensor) -> None:
        if self._images is None:
            raise SimudyError(
                "a loss was computed before the model was called: call the very model that "
                "record() was given, as model(images)"
            )
        seen = call, self._images, labels.detach().clone()
        result.register_hook(self._guarded(partial(self._backward, *seen)))

    def _backward(self, loss: SeenLoss, images: Tensor, labels: Tensor, gradient: Tensor) -> None:
        values = gradient.detach().double().flatten()
        if loss.options["reduction"] == "none":  # and the script takes the mean
            loss, values = loss.with_options(reduction="mean"), values * len(values)
        if values.max() - values.min() > 1e-6 * values.abs().max():
            raise SimudyError(
                "the losses of one batch are weighed one by one: no evidence can say that yet"
            )
        rows = self.album.places(images, labels)
        self._pending.append(Batch(rows, loss, float(values.mean())))

    def _gradient(self, name: str, parameter: Tensor) -> None:
        self._made[name] = _size(parameter.grad)

    def _before_step(self, *_: Any) -> None:
        self._options = [
            {k: v for k, v in group.items() if k != "params"} for group in self._live.param_groups
        ]
        # A closure computes gradients inside of the step, and they are to be seen after it.
        self._used = self._sizes() if self._pending else None

    def _after_step(self, *_: Any) -> None:
        if not self._pending:
            raise SimudyError(
                "the optimizer takes a step, and no loss of torch.nn was computed: use one on what "
                "the model returns"
            )
        used = self._sizes() if self._used is None else self._used
        made = torch.stack([self._made.get(k, torch.zeros(2, dtype=torch.float64)).cpu()
                            for k in self.params])  # fmt: skip
        self.steps.append(Step(self._pending, self._options, made, used))
        self.trail.add(len(self.steps), self.params)
        self._pending, self._made = [], {}

    def _sizes(self) -> Tensor:
        grads = [p.grad for p in self.named.values() if p.requires_grad]
        return torch.stack([_size(grad).cpu() for grad in grads])


def _size(gradient: Tensor | None) -> Tensor:
    """Norm and largest entry, ``(2,)``."""
    if gradient is None:
        return torch.zeros(2, dtype=torch.float64)
    values = gradient.detach().to(torch.float64)
    return torch.stack([values.norm(), values.abs().max()])


def _as_it_stands(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A copy on the same parameters, with moments of its own."""
    twin = copy.copy(optimizer)
    twin.param_groups = [dict(group) for group in optimizer.param_groups]
    twin.state = copy.copy(optimizer.state)
    for parameter, held in optimizer.state.items():
        twin.state[parameter] = {
            k: v.clone() if isinstance(v, Tensor) else v for k, v in held.items()
        }
    return twin


def _modes(model: nn.Module) -> tuple[Any, ...]:
    return (
        [layer.training for layer in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )


def _images_among(values: list[Any]) -> Tensor:
    """The one tensor of real numbers that a model is called with."""
    found = [v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.dim() > 1]
    if len(found) != 1:
        raise SimudyError(
            f"the model is called with {len(found)} batches of real numbers: record one that takes "
            "images alone"
        )
    return found[0]


def _require_precise(named: Params | dict[str, nn.Parameter]) -> None:
    if not named:
        raise SimudyError("the optimizer holds no parameter of the model: give the two that belong")
    for name, p in named.items():
        if p.dtype not in _PRECISE:
            raise SimudyError(
                f"parameter {name!r} is {str(p.dtype).removeprefix('torch.')}, whose roundings no "
                "simulation repeats: record a run in float32 or float64"
            )
