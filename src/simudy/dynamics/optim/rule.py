"""What an inner optimizer is: a dataclass of hyper-parameters with a pure ``init`` and
``update``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from simudy.dynamics import tree
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError
from simudy.ranges import DECAY, NOT_NEGATIVE, POSITIVE

Scalar = float | Tensor  # a hyper-parameter; as a tensor it receives a gradient
Rate = Annotated[Scalar, NOT_NEGATIVE]  # a step size, a decay of the weights, an ε
Decay = Annotated[Scalar, DECAY]  # of a running mean
Bound = Annotated[Scalar, POSITIVE]


class Rule:
    """Base of all inner optimizers. Subclasses are dataclasses; everything is out of place and
    without hidden state.

    Attributes:
        spans_gradients: every iterate is a multiple of θ0 plus a combination of the gradients met
            so far. Then weights can be kept factored (``Factored``) and images live in the row
            space of the first layer's displacement.
    """

    spans_gradients: ClassVar[bool] = False

    def init(self, params: Params) -> Any:
        """The state before the first step: any tree."""
        raise NotImplementedError

    def update(self, grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        """One step: new parameters and new state.

        Args:
            grads: the gradient by name, without the parameters that the loss did not touch in this
                step. These stay as they are, and so does their state: no decay, no count.
        """
        raise NotImplementedError

    def second_point(self, grads: Params, params: Params) -> Params | None:
        """Where the step wants its gradient taken instead, knowing the one at ``params``: what
        ``update`` sees is the gradient there. Default: nowhere else.
        """
        return None

    def final(self, params: Params, state: Any) -> Params:
        """What the run publishes: the last iterate, unless a rule averages."""
        return params


class PerTensor(Rule):
    """A rule that treats every parameter tensor alike and alone: write ``start`` and ``step`` for
    one tensor.
    """

    def start(self, param: Tensor) -> Any:
        """State for one tensor."""
        return None

    def step(self, grad: Tensor, state: Any, param: Tensor) -> tuple[Tensor, Any]:
        """One step for one tensor: ``(new param, new state)``."""
        raise NotImplementedError

    def init(self, params: Params) -> dict[str, Any]:
        return tree.map(self.start, params)

    def update(
        self, grads: Params, state: dict[str, Any], params: Params
    ) -> tuple[Params, dict[str, Any]]:
        pairs = tree.map(self.step, grads, state, params)
        moved, states = ({k: pair[i] for k, pair in pairs.items()} for i in (0, 1))
        return {**params, **moved}, {**state, **states}


def end_on(rules: Sequence[Rule], params: Params, grads: Callable[[int], Params]) -> Params:
    """Where one rule a step ends on gradients that no loss gives.

    Args:
        params: where it begins.
        grads: those of step t, counted from 0.
    """
    state = rules[0].init(params)
    for t, rule in enumerate(rules):
        params, state = rule.update(grads(t), state, params)
    return rules[-1].final(params, state)


def advance(
    rule: Rule, grads: Callable[[Params, Any], Params], batch: Any, state: Any, params: Params
) -> tuple[Params, Any]:
    """One step of ``rule``; what the loss does not touch stays as it is, as in torch.

    Args:
        rule: says where the gradient is to be taken, and what to do with it.
        grads: ``(params, batch) -> ∇ℓ``.
        batch: of this step.

    Raises:
        SimudyError: the loss depends on no parameter at all, or the rule is written for gradients
            of every parameter.
    """
    found = grads(params, batch)
    if found and (point := rule.second_point(found, params)) is not None:
        found = grads(point, batch)
    if not found:
        raise SimudyError(
            "the loss depends on no parameter in this step, so nothing would train: let it use the "
            "params it is given, and set requires_grad=True on what a module is to train"
        )
    try:
        moved, state = rule.update(found, state, params)
    except KeyError as error:
        if (name := error.args[0]) in found or name not in params:
            raise
        raise SimudyError(
            f"{type(rule).__name__} asks for the gradient of {name!r}, which the loss does not "
            "touch in this step: let its update pass over names that grads lacks, as PerTensor does"
        ) from error
    return {**params, **moved}, state


def is_on(value: Scalar) -> bool:
    """Whether a term takes part: a tensor always does (it may be learned), a number when it is not
    zero.
    """
    return isinstance(value, Tensor) or value != 0


def less(param: Tensor, lr: Scalar, direction: Tensor) -> Tensor:
    """θ − η·d; where η is a number, in one pass over the memory, forward and back."""
    return (
        param - lr * direction if isinstance(lr, Tensor) else torch.add(param, direction, alpha=-lr)
    )
