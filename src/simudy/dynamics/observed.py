"""What a run is seen to do on its way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from simudy.dynamics import tree
from simudy.dynamics.custom_vjp import unwrapped
from simudy.dynamics.loss import explained
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

Observe = Callable[[int, Any, Tensor], Any]


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
