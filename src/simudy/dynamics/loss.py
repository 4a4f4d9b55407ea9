"""What a simulation calls: a loss, exact and the same at every call, and ``observe``."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import TorchDispatchMode

from simudy.dynamics import tree
from simudy.dynamics.custom_vjp import unwrapped
from simudy.dynamics.model.operations import exact_operations
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

REMEDY = (
    "a simulated run must be the same every time: draw beforehand and pass the numbers in the "
    "batches; put dropout and its like in eval mode"
)
_BY_AUTOGRAD = (
    "the loss takes a derivative by torch.autograd inside of itself, which another derivative goes "
    "around: take it by torch.func (grad, vjp, jvp), of a function of what it is by"
)
# What torch says where a transform of torch.func meets what it does not know, and what to do.
_EXPLAINED = {
    "random operation": f"the loss draws random numbers, but {REMEDY}",
    "saved tensor hooks": "the loss uses torch.utils.checkpoint, or hooks of its own on saved "
    "tensors, which torch.func does not know: call the block itself, and save memory by "
    "adjoint=Recompute()",
    "rrelu": f"the loss draws random slopes (rrelu), but {REMEDY}",
    "calling .item()": "the loss reads a number out of a tensor (.item(), float()) under vmap: "
    "keep it a tensor, or simulate one run at a time",
    "data-dependent control flow": "the loss branches on a tensor's value under vmap: use "
    "torch.where, or simulate one run at a time",
    "Cannot access data pointer": "the loss takes a tensor out of torch (numpy, tolist), which a "
    "derivative cannot follow: use operations of torch",
    "requires_grad_()": _BY_AUTOGRAD,
    "does not require grad": _BY_AUTOGRAD,
    "have been used in the graph": _BY_AUTOGRAD,
    "setup_context": "the loss uses an autograd.Function without setup_context (as "
    "torch.utils.checkpoint does), which torch.func does not know: write it in operations of "
    "torch, or call the block itself and save memory by adjoint=Recompute()",
}
_checked: WeakSet[Any] = WeakSet()
Observe = Callable[[int, Any, Tensor], Any]


@dataclass(frozen=True)
class ExactLoss:
    """``loss`` by exact operations (``exact_operations``), in whatever thread and whenever it is
    called.
    """

    loss: Callable[[Params, Any], Any]

    def __call__(self, params: Params, batch: Any) -> Any:
        with explained("the loss"), exact_operations():
            return self.loss(params, batch)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """What torch says of a function that it cannot differentiate, in one line with the remedy.

    Args:
        what: the name of the function.
    """
    try:
        yield
    except RuntimeError as error:
        line = next((line for words, line in _EXPLAINED.items() if words in str(error)), None)
        if line is None:
            raise
        raise SimudyError(line.replace("the loss", what, 1)) from error


def as_written(loss: Any) -> Any:
    """A loss that ``torch.compile`` made, before it did: it cannot follow our derivatives, and
    would run it as it is, or fail.
    """
    return getattr(loss, "_torchdynamo_orig_callable", loss)


def check_same(loss: ExactLoss, params: Params, batch: Any) -> None:
    """Call a loss that is met for the first time twice.

    Raises:
        SimudyError: the two values differ, or are no scalar tensors.
    """
    owner = getattr(loss.loss, "__self__", loss.loss)
    if _is_checked(owner):
        return
    before = _states()
    first, second = (number(loss(params, batch)) for _ in range(2))
    if not torch.allclose(
        first, second, rtol=torch.finfo(first.dtype).eps ** 0.5, atol=1e-9, equal_nan=True
    ):
        found = _moved(before)
        values = f"{float(first.flatten()[0]):.9g} and then {float(second.flatten()[0]):.9g}"
        raise SimudyError(
            f"the loss draws from {' and '.join(found)}, but {REMEDY}"
            if found
            else f"the loss gives {values} for the same batch, but {REMEDY}; keep no state in it"
        )
    with suppress(TypeError):  # it cannot be weakly referred to: it is met anew each time
        _checked.add(owner)


def _is_checked(owner: Any) -> bool:
    try:
        return owner in _checked
    except TypeError:
        return False


@contextmanager
def draws_refused(loss: ExactLoss, params: Params, batches: Sequence[Any]) -> Iterator[None]:
    """Raise a SimudyError if the loss moves torch's, numpy's or Python's random generator."""
    before = _states()
    yield
    moved = _moved(before)
    # Another thread may have drawn as well.
    if moved and (threading.active_count() == 1 or any(_draws(loss, params, b) for b in batches)):
        raise SimudyError(f"the loss, or a rule, draws from {' and '.join(moved)}, but {REMEDY}")


def _draws(loss: ExactLoss, params: Params, batch: Any) -> bool:
    """Whether this call draws: as seen in this thread, or by a generator that moves each time."""
    with _Watch() as watch:
        loss(params, batch)
    return watch.drawn or all(_moves_others(loss, params, batch) for _ in range(3))


def _moves_others(loss: ExactLoss, params: Params, batch: Any) -> bool:
    before = _states()
    loss(params, batch)
    return any("torch" not in name for name in _moved(before))


def _moved(before: dict[str, Any]) -> list[str]:
    return [name for name, state in _states().items() if state != before.get(name, state)]


class _Watch(TorchDispatchMode):
    drawn = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.drawn |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _states() -> dict[str, Any]:
    """The states of the generators that any code may draw from."""
    states: dict[str, Any] = {
        "torch's generator": _bytes(torch.default_generator),
        "Python's random": random.getstate(),
    }
    if torch.cuda.is_initialized():
        states["torch's CUDA generators"] = [_bytes(g) for g in torch.cuda.default_generators]
    if numpy := sys.modules.get("numpy"):
        _, keys, *place = numpy.random.get_state()
        states["numpy's random"] = keys.tobytes(), place
    return states


def number(value: Any) -> Tensor:
    """The value of a loss, beneath ``torch.func``'s wrappers."""
    if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
        found = f"of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else ""
        raise SimudyError(
            f"the loss must return one real number as a tensor, and gives a "
            f"{type(value).__name__} {found}".rstrip()
        )
    return unwrapped(value).detach()


def _bytes(generator: torch.Generator) -> bytes:
    with temporarily_clear_interpreter_stack():  # or its state would be wrapped as well
        return generator.get_state().numpy().tobytes()


@dataclass(frozen=True)
class Observed:
    """``observe``, kept from moving what it is shown.

    Raises:
        SimudyError: it writes to the parameters or to the loss, or torch cannot follow it.
    """

    observe: Observe

    def __call__(self, step: int, params: Params, loss: Tensor) -> Any:
        shown = [unwrapped(leaf) for leaf in tree.leaves((params, loss))]
        before = [_writes(leaf) for leaf in shown]
        with explained("observe"):
            seen = self.observe(step, params, loss)
        if before != [_writes(leaf) for leaf in shown]:
            raise SimudyError(
                "observe writes to the parameters it is shown, and so into the run: let it take "
                "a clone() of them"
            )
        return seen


def _writes(leaf: Tensor) -> int:
    """How often a tensor has been written to."""
    return 0 if leaf.is_inference() else leaf._version
