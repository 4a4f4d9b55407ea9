"""The optimizers of ``higher`` as rules."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


@dataclass
class Higher(Rule):
    """One step of ``higher``'s differentiable twin of a torch optimizer, made pure.

    Args:
        optimizer: a class of ``torch.optim`` that ``higher`` knows.
        options: its keyword arguments. Tensors among them receive gradients; ``higher`` is exact in
            ``lr``, and in momenta and decays of SGD, but not in the betas of Adam.

    Raises:
        SimudyError: ``higher`` has no such optimizer, ignores the option (``maximize``) or breaks
            (centred RMSprop).

    Reference: Grefenstette et al., Generalized inner loop meta-learning, arXiv:1910.01727.

    Example:
        >>> rule, params = Higher(torch.optim.SGD, {"lr": 0.5}), {"w": torch.ones(1)}
        >>> rule.update({"w": torch.ones(1)}, rule.init(params), params)[0]["w"]
        tensor([0.5000])
    """

    optimizer: type[torch.optim.Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import higher

        if self.optimizer not in higher.optim._opt_mapping:
            raise SimudyError(f"higher has no {self.optimizer.__name__}: use the native rule")
        if self.options.get("maximize"):
            raise SimudyError("higher ignores maximize and would descend: use the native rule")
        if self.options.get("centered"):
            raise SimudyError(
                "higher's centred RMSprop has NaN hyper-gradients at zero gradients: use the "
                "native rule"
            )

    def init(self, params: Params) -> list[dict[str, Any]]:
        return [self._start(p) for p in params.values()]

    def update(
        self, grads: Params, state: list[dict[str, Any]], params: Params
    ) -> tuple[Params, list[dict[str, Any]]]:
        # higher rebinds the entries of these dicts, so they are copies; the tensors themselves it
        # leaves alone.
        twin = self._twin([dict(slot) for slot in state], list(params.values()))
        twin._update([[grads.get(name) for name in params]])  # None: higher skips, as torch
        moved = dict(zip(params, twin.param_groups[0]["params"], strict=True))
        return moved, [twin.state[0][i] for i in range(len(params))]

    def _start(self, param: Tensor) -> dict[str, Any]:
        if (
            self.optimizer is torch.optim.Adagrad
        ):  # the one whose state is made by torch, not at the first step
            return {
                "step": 0,
                "sum": torch.full_like(param, self.options.get("initial_accumulator_value", 0.0)),
            }
        return {}

    def _twin(self, slots: list[dict[str, Any]], thetas: list[Tensor]) -> Any:
        """higher's optimizer in the midst of a run. Its constructor copies tensors, which
        torch.func does not allow.
        """
        import higher

        twin: Any = object.__new__(higher.optim._opt_mapping[self.optimizer])  # type: ignore[index]
        twin.param_groups = [{**_defaults(self.optimizer), **self.options, "params": thetas}]
        twin.state = [defaultdict(dict, enumerate(slots))]
        return twin


def _defaults(optimizer: type[torch.optim.Optimizer]) -> dict[str, Any]:
    parameters = inspect.signature(optimizer.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
