"""A live ``torch.optim`` optimizer as a rule."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from simudy.dynamics import tree
from simudy.dynamics.model.exact import refuse_gradient_hooks
from simudy.dynamics.optim import adadelta, adafactor, adagrad, adamax, asgd, nadam, rmsprop, rprop
from simudy.dynamics.optim.adadelta import Adadelta
from simudy.dynamics.optim.adafactor import Adafactor
from simudy.dynamics.optim.adagrad import Adagrad
from simudy.dynamics.optim.adam import Adam, AdamW, Moments
from simudy.dynamics.optim.adamax import Adamax
from simudy.dynamics.optim.asgd import ASGD
from simudy.dynamics.optim.groups import Groups, Pattern
from simudy.dynamics.optim.muon import Muon
from simudy.dynamics.optim.nadam import NAdam
from simudy.dynamics.optim.radam import RAdam
from simudy.dynamics.optim.rmsprop import RMSprop
from simudy.dynamics.optim.rprop import Rprop
from simudy.dynamics.optim.rule import PerTensor, Rule
from simudy.dynamics.optim.sgd import SGD
from simudy.dynamics.optim.started import Started
from simudy.errors import SimudyError

# Of each rule: what its state is made by, and torch's names of the parts, in our order.
_STATES: dict[type[PerTensor], tuple[Any, tuple[str, ...]]] = {
    SGD: (lambda buffer: buffer, ("momentum_buffer",)),
    Adam: (Moments, ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
    AdamW: (Moments, ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
    NAdam: (nadam.State, ("step", "exp_avg", "exp_avg_sq", "mu_product")),
    RAdam: (Moments, ("step", "exp_avg", "exp_avg_sq")),
    Adamax: (adamax.State, ("step", "exp_avg", "exp_inf")),
    RMSprop: (rmsprop.State, ("square_avg", "grad_avg", "momentum_buffer")),
    Adagrad: (adagrad.State, ("step", "sum")),
    Adadelta: (adadelta.State, ("square_avg", "acc_delta")),
    ASGD: (asgd.State, ("step", "eta", "ax")),
    Rprop: (rprop.State, ("prev", "step_size")),
    Adafactor: (adafactor.State, ("step", "row_var", "col_var", "variance")),
    Muon: (lambda buffer: buffer, ("momentum_buffer",)),
}
_RULES: dict[type[torch.optim.Optimizer], type[PerTensor]] = {
    getattr(torch.optim, rule.__name__): rule
    for rule in _STATES
    if hasattr(torch.optim, rule.__name__)  # Adafactor and Muon came late
}
_REFUSED = {
    "SparseAdam": "it steps on sparse gradients, and a simulation's are dense: train with "
    "torch.optim.Adam, and sparse=False in the embedding",
    "LBFGS": "its steps call the loss as often as it sees fit and branch on the values: train with "
    "SGD or Adam, or converge and differentiate the end implicitly",
}


def from_torch(
    optimizer: torch.optim.Optimizer, named: nn.Module | Iterable[tuple[str, nn.Parameter]]
) -> Rule:
    """The rule of a torch optimizer as it stands: hyper-parameters, moments and step counts.

    A copy: what the optimizer does later does not change the rule. Learning-rate schedulers are not
    part of it, their rates at this moment are; see ``from_scheduler``.

    Args:
        optimizer: an instance of a class of ``torch.optim`` that we have. ``foreach``, ``fused``,
            ``capturable`` and ``differentiable`` do not change the values and are ignored.
        named: the module it trains, or its named parameters. Parameters that the optimizer does not
            hold, or that require no grad, are frozen.

    Returns:
        One rule, or ``Groups`` when parameter groups differ or some parameters are frozen;
        ``Started`` where the optimizer has taken steps.

    Raises:
        SimudyError: we have no such rule, the optimizer holds a parameter without a name, or a hook
            has a hand in its steps.

    Example:
        >>> module = nn.Linear(2, 2)
        >>> from_torch(torch.optim.AdamW(module.parameters(), lr=0.1), module).lr
        0.1
    """
    return rules_of(optimizer, named, [optimizer.param_groups])[0]


def rules_of(
    optimizer: torch.optim.Optimizer,
    named: nn.Module | Iterable[tuple[str, nn.Parameter]],
    times: Sequence[Sequence[dict[str, Any]]],
) -> list[Rule]:
    """The rule of the optimizer as it would stand with the settings of each of ``times``: those of
    its groups, in order.
    """
    named = list(named.named_parameters() if isinstance(named, nn.Module) else named)
    _refuse_hooks(optimizer)
    refuse_gradient_hooks(named)
    names = {id(parameter): name for name, parameter in named}
    homes = [
        (_name(parameter, names), i, parameter)
        for i, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    ]
    homes = [home for home in homes if home[2].requires_grad]
    rules = [[_rule(type(optimizer), group) for group in groups] for groups in times]
    each = [{name: at[i] for name, i, _ in homes} for at in rules]
    states: dict[str, Any] = {}
    for name, i, parameter in homes:
        held = optimizer.state.get(parameter, {})
        states |= _state(rules[0][i], name, parameter, held) if rules else {}
    frozen = len(homes) < len(names)
    alike = not frozen and all(len(homes) and _are_equal(list(at.values())) for at in each)
    return [_joined(at, states, frozen=frozen, alike=alike) for at in each]


def _are_equal(rules: list[PerTensor]) -> bool:
    return all(rule is rules[0] or rule == rules[0] for rule in rules)


def _joined(
    rules: dict[str, PerTensor], states: dict[str, Any], *, frozen: bool, alike: bool
) -> Rule:
    """One rule for all parameters, by name where they differ."""
    if alike:
        first = next(iter(rules.values()))
        return Started(first, states) if states else first
    each: dict[Pattern, Rule | None] = {
        glob.escape(name): Started(rule, {name: states[name]}) if name in states else rule
        for name, rule in rules.items()
    }
    return Groups({**each, "*": None} if frozen else each)


def _rule(kind: type[torch.optim.Optimizer], group: dict[str, Any]) -> PerTensor:
    if kind not in _RULES:
        known = ", ".join(k.__name__ for k in _RULES)
        remedy = f"write one deriving from PerTensor, or use one of {known}"
        raise SimudyError(f"no rule for {kind.__name__}: {_REFUSED.get(kind.__name__, remedy)}")
    rule = (
        AdamW if kind is torch.optim.Adam and group.get("decoupled_weight_decay") else _RULES[kind]
    )
    options = {**group, **dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))}
    # None stands for torch's own default (Muon's adjust_lr_fn), which is ours too.
    given = {f.name: options[f.name] for f in fields(rule) if options.get(f.name) is not None}  # type: ignore[arg-type]
    # torch takes rates of one element and any shape, where ours would be a curve.
    return rule(
        **{k: _copied(v.reshape(()) if isinstance(v, Tensor) else v) for k, v in given.items()}
    )


def _state(
    rule: PerTensor, name: str, parameter: Tensor, held: Mapping[str, Any]
) -> dict[str, Any]:
    """The state that torch holds of a parameter, in our form, by its name; nothing if it is that of
    the first step.
    """
    make, parts = _STATES[type(rule)]
    unused = {"max_exp_avg_sq": "amsgrad", "grad_avg": "centered"}  # unless this flag is set
    found = {part: _copied(held.get(part)) for part in parts}
    for part, flag in unused.items():
        if part in found and not getattr(rule, flag, True):
            found[part] = None
    for part, number in {"step": int, "mu_product": float, "eta": float}.items():
        if part in found:
            found[part] = number(held.get(part, 0))
    state = make(*found.values())
    return {name: state} if held and not _same(state, rule.start(parameter.detach())) else {}


def _same(state: Any, other: Any) -> bool:
    if isinstance(state, tuple) and isinstance(other, tuple):
        return all(map(_same, state, other))
    if isinstance(state, Tensor) and isinstance(other, Tensor):
        return torch.equal(state, other)
    return type(state) is type(other) and state == other


def _copied(value: Any) -> Any:
    """A value that the optimizer cannot change any more; tensors keep their graph."""
    return tree.rebuild(value, [leaf.clone() for leaf in tree.leaves(value)])


def _refuse_hooks(optimizer: torch.optim.Optimizer) -> None:
    hooks = {
        **optimizer._optimizer_step_pre_hooks,
        **optimizer._optimizer_step_post_hooks,
        **_global_optimizer_pre_hooks,
        **_global_optimizer_post_hooks,
    }
    step = vars(optimizer).get("step")
    patched = step is not None and not hasattr(step, "_wrapped_by_lr_sched")
    if hooks or patched:
        what = "a step hook" if hooks else "a step of its own"
        raise SimudyError(
            f"the optimizer has {what}, which no simulation runs: remove it, and say what it does "
            "by a wrapper, as in Clipped(from_torch(optimizer, module), max_norm=1.0)"
        )


def _name(parameter: Tensor, names: dict[int, str]) -> str:
    if id(parameter) not in names:
        raise SimudyError(
            f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that has no name: "
            "pass the module (or all named parameters) it trains"
        )
    return names[id(parameter)]
