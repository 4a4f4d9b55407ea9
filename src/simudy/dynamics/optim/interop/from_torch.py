"""A live ``torch.optim`` optimizer as a rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from simudy.dynamics.optim.adadelta import Adadelta
from simudy.dynamics.optim.adagrad import Adagrad
from simudy.dynamics.optim.adam import Adam, AdamW
from simudy.dynamics.optim.adamax import Adamax
from simudy.dynamics.optim.groups import Groups, Pattern
from simudy.dynamics.optim.muon import Muon
from simudy.dynamics.optim.nadam import NAdam
from simudy.dynamics.optim.radam import RAdam
from simudy.dynamics.optim.rmsprop import RMSprop
from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.optim.sgd import SGD
from simudy.errors import SimudyError

_RULES: dict[type[torch.optim.Optimizer], type[Rule]] = {
    getattr(torch.optim, rule.__name__): rule
    for rule in (SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta, Muon)
    if hasattr(torch.optim, rule.__name__)  # Muon came late
}


def from_torch(
    optimizer: torch.optim.Optimizer, named: nn.Module | Iterable[tuple[str, nn.Parameter]]
) -> Rule:
    """The rule of a torch optimizer, hyper-parameters included; its momenta are not read, a
    simulation starts fresh.

    Args:
        optimizer: an instance of a class of ``torch.optim`` that we have. ``foreach``, ``fused``,
            ``capturable`` and ``differentiable`` do not change the values and are ignored.
        named: the module it trains, or its named parameters. Parameters the optimizer does not hold
            are frozen.

    Returns:
        One rule, or ``Groups`` when parameter groups differ or some parameters are frozen.

    Raises:
        SimudyError: we have no such rule, or the optimizer holds a parameter without a name.

    Example:
        >>> module = nn.Linear(2, 2)
        >>> from_torch(torch.optim.AdamW(module.parameters(), lr=0.1), module).lr
        0.1
    """
    named = named.named_parameters() if isinstance(named, nn.Module) else named
    names = {id(parameter): name for name, parameter in named}
    rules: dict[Pattern, Rule | None] = dict.fromkeys(names.values())
    for group in optimizer.param_groups:
        rule = _rule(type(optimizer), group)
        for parameter in group["params"]:
            rules[_name(parameter, names)] = rule
    first, *others = rules.values()
    return first if first is not None and all(other == first for other in others) else Groups(rules)


def _rule(kind: type[torch.optim.Optimizer], group: dict[str, Any]) -> Rule:
    if kind not in _RULES:
        known = ", ".join(k.__name__ for k in _RULES)
        raise SimudyError(
            f"no rule for {kind.__name__}: write one deriving from PerTensor, or use one of {known}"
        )
    rule = (
        AdamW if kind is torch.optim.Adam and group.get("decoupled_weight_decay") else _RULES[kind]
    )
    options = {**group, **dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))}
    # None stands for torch's own default (Muon's adjust_lr_fn), which is ours too.
    return rule(
        **{f.name: options[f.name] for f in fields(rule) if options.get(f.name) is not None}
    )  # type: ignore[arg-type]


def _name(parameter: Tensor, names: dict[int, str]) -> str:
    if id(parameter) not in names:
        raise SimudyError(
            f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that has no name: "
            "pass the "
            "module (or all named parameters) it trains"
        )
    return names[id(parameter)]
