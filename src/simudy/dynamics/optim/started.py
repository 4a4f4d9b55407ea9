"""A rule that goes on from where an earlier run stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simudy.dynamics import tree
from simudy.dynamics.optim.going_on import checked_state
from simudy.dynamics.optim.rule import PerTensor
from simudy.dynamics.optim.wrapper import Wrapper
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


@dataclass
class Started(Wrapper):
    """Begin with the moments and step counts of an earlier run instead of fresh ones.

    Tensors in ``states`` receive gradients, but are no hyper-parameters: no schedule moves them.

    Args:
        rule: a rule that treats every tensor alone (``PerTensor``).
        states: the state of each parameter by name, as ``rule.update`` returns it. A parameter that
            is not named here begins afresh.

    Raises:
        SimudyError: ``rule`` keeps no state by parameter, or a state is of a parameter that is not
            there or has another shape.

    Example:
        >>> import torch
        >>> from simudy.dynamics.optim import SGD
        >>> rule = Started(SGD(lr=1.0, momentum=0.5), {"w": torch.tensor([4.0])})
        >>> params = {"w": torch.zeros(1)}
        >>> rule.update({"w": torch.ones(1)}, rule.init(params), params)[0]["w"]  # −(0.5·4 + 1)
        tensor([-3.])
    """

    rule: PerTensor  # pyright: ignore[reportIncompatibleVariableOverride]
    states: Mapping[str, Any] = field(default_factory=dict, metadata={"hyperparameters": False})

    def __post_init__(self) -> None:
        if not isinstance(self.rule, PerTensor):
            raise SimudyError(
                f"Started({type(self.rule).__name__}): it needs a rule that treats every tensor "
                "alone, so start the rules inside of wrappers and groups"
            )

    @property
    def spans_gradients(self) -> bool:  # type: ignore[override]
        # A momentum from before is no gradient met in this run.
        return self.rule.spans_gradients and not tree.leaves(self.states)

    def init(self, params: Params) -> dict[str, Any]:
        return checked_state(self.rule, {**self.rule.init(params), **self.states}, params)
