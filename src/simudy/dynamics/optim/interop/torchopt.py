"""Any TorchOpt optimizer as a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


class State(NamedTuple):
    """Steps taken, and TorchOpt's state: a tree over a list of tensors."""

    step: int
    inner: Any


@dataclass
class TorchOpt(Rule):
    """A TorchOpt gradient transformation, made pure: out of place, and no memory outside of the
    state.

    Args:
        factory: makes a *new* transformation at each call, e.g. ``torchopt.adam``. TorchOpt's
            momentum keeps a hidden "first call" flag, so a transformation must not outlive its
            step.
        options: keyword arguments of ``factory``. A tensor here (TorchOpt differentiates ``lr``
            alone) receives a gradient under every adjoint, one captured inside of ``factory`` only
            under ``Direct``.

    Raises:
        SimudyError: ``factory`` returns the same object twice, or clips with
            ``torchopt.clip.clip_grad_norm``, whose hyper-gradient is wrong; or it holds functions
            that are not TorchOpt's own, and a step leaves some parameters untouched.

    Reference: Ren et al., TorchOpt, JMLR 2023, arXiv:2211.06934.

    Example:
        >>> import torchopt
        >>> rule, params = TorchOpt(torchopt.sgd, {"lr": 0.5}), {"w": torch.ones(1)}
        >>> rule.update({"w": torch.ones(1)}, rule.init(params), params)[0]["w"]
        tensor([0.5000])
    """

    factory: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def init(self, params: Params) -> dict[tuple[str, ...], State]:
        transform = self.factory(**self.options)
        if transform is self.factory(**self.options):
            raise SimudyError(
                "TorchOpt's transformations remember their first call: give a factory of new ones"
            )
        if any(f.__module__ == "torchopt.clip" for f in _functions(transform)):
            raise SimudyError(
                "torchopt.clip.clip_grad_norm leaves the norm out of the graph, so its "
                "hyper-gradient is wrong: use "
                "Clipped(TorchOpt(...), max_norm=...)"
            )
        # Each tensor by itself: it counts its own steps, as in torch. Functions from elsewhere may
        # couple the tensors.
        apart = all(f.__module__.startswith("torchopt.") for f in _functions(transform))
        groups = [(name,) for name in params] if apart else [tuple(params)]
        return {
            g: State(0, self.factory(**self.options).init([params[k] for k in g])) for g in groups
        }

    def update(
        self, grads: Params, state: dict[tuple[str, ...], State], params: Params
    ) -> tuple[Params, dict[tuple[str, ...], State]]:
        new, states = dict(params), dict(state)
        for names in state:
            if _touched(names, grads):
                moved, states[names] = self._moved(
                    grads, state[names], {k: params[k] for k in names}
                )
                new.update(moved)
        return new, states

    def _start(self, thetas: list[Tensor]) -> State:
        return State(0, self.factory(**self.options).init(thetas))

    def _moved(self, grads: Params, state: State, params: Params) -> tuple[Params, State]:
        thetas, slopes = list(params.values()), [grads[name] for name in params]
        transform = self._after(state.step, thetas)
        moves, inner = transform.update(slopes, state.inner, params=thetas, inplace=False)
        moved = dict(zip(params, map(torch.add, thetas, moves), strict=True))
        return moved, State(state.step + 1, inner)

    def _after(self, steps: int, thetas: list[Tensor]) -> Any:
        """A new transformation whose hidden flag says whether this is the first call."""
        transform = self.factory(**self.options)
        if steps:
            blank = [torch.zeros(()) for _ in thetas]
            transform.update(blank, transform.init(blank), params=blank, inplace=False)
        return transform


def _touched(names: tuple[str, ...], grads: Params) -> bool:
    """Whether this step moves these tensors."""
    touched = [name for name in names if name in grads]
    if touched and len(touched) < len(names):
        missing = next(name for name in names if name not in grads)
        raise SimudyError(
            f"the loss does not touch {missing!r} in this step, and a transformation with "
            "functions of one's own may couple the parameters: give each its TorchOpt by Groups, "
            "or use a native rule"
        )
    return bool(touched)


def _functions(node: Any) -> Iterator[FunctionType]:
    """Every function a transformation is made of: chains keep theirs in closures."""
    if isinstance(node, tuple):
        for child in node:
            yield from _functions(child)
    elif isinstance(node, FunctionType):
        yield node
        for cell in node.__closure__ or ():
            yield from _functions(cell.cell_contents)
