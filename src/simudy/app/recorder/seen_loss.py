"""A loss as it was called, whoever called it: the functions of ``torch.nn.functional``, with the
arguments they were given.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from simudy.dynamics.model.criterion import PerSample
from simudy.errors import SimudyError

_MODULES: dict[Callable[..., Any], type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
}
_NOT_OPTIONS = ("input", "target", "size_average", "reduce")


@dataclass(frozen=True)
class SeenLoss:
    """One call.

    Attributes:
        kind: the class of ``torch.nn`` that calls it so.
        options: the arguments of that class.
        outputs: the shape of what it was called on.
    """

    kind: type[nn.Module]
    options: dict[str, Any]
    outputs: tuple[int, ...]

    def with_options(self, **options: Any) -> SeenLoss:
        """The same with other options."""
        return dataclasses.replace(self, options={**self.options, **options})

    def same_as(self, other: SeenLoss) -> bool:
        """Whether both are the same loss, of whatever they compared."""
        return self.kind is other.kind and _alike(self.options, other.options)

    def criterion(self) -> PerSample | None:
        """As the model takes it; None for the cross-entropy that it takes by itself."""
        plain = self.kind(**self.options)
        by_default = isinstance(plain, nn.CrossEntropyLoss) and _alike(
            self.options, _options_of(nn.CrossEntropyLoss(), {})
        )
        return None if by_default else PerSample(plain)


class LossTap(TorchFunctionMode):
    """Tells ``seen`` of every loss that is computed while it is on: which, the labels, and the
    result.
    """

    def __init__(self, seen: Callable[[SeenLoss, Tensor, Tensor], None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _MODULES and result.requires_grad:
            self.seen(*_call(func, args, kwargs), result)
        return result


def _call(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> tuple[SeenLoss, Tensor]:
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    if given.get("size_average") is not None or given.get("reduce") is not None:
        raise SimudyError(
            f"{func.__name__} was given size_average or reduce, which torch has deprecated: give "
            "it reduction='mean'"
        )
    kind = _MODULES[func]
    shape = tuple(given["input"].shape)
    return SeenLoss(kind, _options_of(kind(), given), shape), given["target"]


def _options_of(loss: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """Each option of the loss' class, as given or as it is by default."""
    names = inspect.signature(type(loss)).parameters.keys() - _NOT_OPTIONS
    held = {name: given.get(name, getattr(loss, name)) for name in sorted(names)}
    beyond = [k for k, v in given.items() if v is not None and k not in (*names, *_NOT_OPTIONS)]
    if beyond:
        raise SimudyError(
            f"the loss was given {beyond[0]}, which {type(loss).__name__} has not: no evidence can "
            "say that yet"
        )
    return {k: v.detach() if isinstance(v, Tensor) else v for k, v in held.items()}


def _alike(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return all(
        torch.equal(v, theirs[k])
        if isinstance(v, Tensor) and isinstance(theirs[k], Tensor)
        else type(v) is type(theirs[k]) and v == theirs[k]
        for k, v in ours.items()
    )
