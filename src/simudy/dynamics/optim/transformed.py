"""A function of one's own between the gradient and the rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.optim.wrapper import Numbered
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


@dataclass
class Transformed(Numbered):
    """Give ``rule`` the gradient ``transform(grads, step)``.

    Args:
        rule: the rule that uses the new gradient.
        transform: gradients by name, and the number of the step from 0, to gradients by name; pure,
            by operations of torch. Tensors that are to receive gradients under ``Recompute`` are
            fields of a dataclass with ``__call__``, not in a closure.

    Raises:
        SimudyError: ``rule`` is or wraps ``SAM``, which goes around.

    Example:
        >>> import torch
        >>> from simudy.dynamics.optim import SGD
        >>> def halve_in_time(grads, step):
        ...     return {name: grad / 2**step for name, grad in grads.items()}
        >>> rule, params = Transformed(SGD(lr=1.0), halve_in_time), {"w": torch.zeros(1)}
        >>> state = rule.init(params)
        >>> for _ in range(2):
        ...     params, state = rule.update({"w": torch.ones(1)}, state, params)
        >>> params["w"]
        tensor([-1.5000])
    """

    rule: Rule
    transform: Callable[[Params, int], Params]

    spans_gradients = False  # type: ignore[assignment]  # nobody knows what it does to an entry

    def shaped_at(self, step: int, grads: Params, params: Params) -> Params:
        return self.transform(grads, step)

    def second_point(self, grads: Params, params: Params) -> Params | None:
        if self.rule.second_point(grads, params) is None:
            return None
        raise SimudyError(
            "Transformed around a rule with a second gradient would leave the first as it is: put "
            "it inside, as in SAM(Transformed(rule, transform))"
        )
