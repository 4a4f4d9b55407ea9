"""The state dict of a torch optimizer, as a rule: its class told by its settings, its groups by
names, sizes and the shapes of its moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from simudy.dynamics.optim import from_torch
from simudy.dynamics.optim.rule import Rule
from simudy.errors import SimudyError

_DEPTH = 4
_KINDS: tuple[type[torch.optim.Optimizer], ...] = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.Adamax, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta),
    *(torch.optim.ASGD, torch.optim.Rprop),
)
WAYS = {"foreach", "fused", "capturable", "differentiable", "initial_lr", "params", "swa_lr"}
# what OneCycleLR writes into a group, and what it has moved by then
CYCLED = {"max_lr", "min_lr", "max_momentum", "base_momentum"}
WAYS |= CYCLED
_LATE = {"maximize", "decoupled_weight_decay"}  # older files lack them
_NAMES = {"param_names", "name"}
Assignment = list[list[str]]


def states_in(
    loaded: Any, is_one: Callable[[Mapping[str, Any]], bool], depth: int = _DEPTH
) -> Iterator[Mapping[str, Any]]:
    """Every state dict of a kind in what a file held; nothing is looked for inside of one."""
    if isinstance(loaded, Mapping) and is_one(loaded):
        yield loaded
    elif depth and isinstance(loaded, (Mapping, list)):
        for value in loaded.values() if isinstance(loaded, Mapping) else loaded:
            yield from states_in(value, is_one, depth - 1)


def saved_optimizers(loaded: Any) -> Iterator[Mapping[str, Any]]:
    """Every state dict of a torch optimizer in what a file held."""
    return states_in(loaded, lambda held: isinstance(held.get("param_groups"), list))


def kinds(group: Mapping[str, Any]) -> list[type[torch.optim.Optimizer]]:
    """The optimizers of torch whose groups have these settings."""
    held = group.keys() - WAYS - _NAMES
    return [kind for kind in _KINDS if _settings(kind) - _LATE <= held <= _settings(kind)]


def cycles_momentum(group: Mapping[str, Any]) -> bool:
    """Whether the momentum that was saved is a scheduler's, not the one that was begun with."""
    return "base_momentum" in group


def is_decoupled(group: Mapping[str, Any]) -> bool | None:
    """Whether what looks like Adam is AdamW; None where an older file does not tell."""
    known = "decoupled_weight_decay" in group or not group.get("weight_decay")
    return bool(group.get("decoupled_weight_decay")) if known else None


def class_names(group: Mapping[str, Any]) -> list[str]:
    """Names of the rules that these settings may be of."""
    names, told = [kind.__name__ for kind in kinds(group)], is_decoupled(group)
    if "Adam" not in names or (told is False and group.get("weight_decay")):
        return names
    if told and group.get("weight_decay"):
        return ["AdamW" if name == "Adam" else name for name in names]
    return [*names, "AdamW"]


def rule_of(
    module: nn.Module, saved: Mapping[str, Any], *, moments: bool, decoupled: bool | None = None
) -> Rule:
    """The rule that a saved state is of, at the learning rate it began with.

    Args:
        moments: go on with the saved ones (``Started``), or begin afresh.
        decoupled: whether Adam is AdamW, where the file does not tell.

    Raises:
        SimudyError: the class, or what parameter is in which group, cannot be told.
    """
    groups = [dict(group) for group in saved["param_groups"]]
    found = kinds(groups[0])
    if len(found) > 1 and moments:
        found = [kind for kind in found if kind is not torch.optim.Adamax or _has_inf(saved)]
    told = decoupled if (said := is_decoupled(groups[0])) is None else said
    if len(found) != 1 or (found[0] is torch.optim.Adam and told is None):
        raise SimudyError(
            "the file holds an optimizer's settings, but they do not tell its class: say it, as in "
            "Recipe(optimizer=AdamW)"
        )
    kind: Any = torch.optim.AdamW if found[0] is torch.optim.Adam and told else found[0]
    places = _places(module, saved)
    ours = {
        name: p.detach().clone().requires_grad_(p.requires_grad)
        for name, p in module.named_parameters()
    }
    made = kind([{"params": [ours[name] for name in names]} for names in places], lr=0.1)
    begun = [{**g, "lr": g.get("initial_lr", g["lr"])} for g in groups]
    plain = [{k: v for k, v in g.items() if k not in _NAMES} for g in begun]
    made.load_state_dict(
        {"state": saved.get("state", {}) if moments else {}, "param_groups": plain}
    )
    for group in made.param_groups:
        group["params"] = [p for p in group["params"] if p.requires_grad]
    return from_torch(made, [(k, p) for k, p in ours.items() if p.requires_grad])  # type: ignore


def _settings(kind: type[torch.optim.Optimizer]) -> set[str]:
    return set(kind([torch.zeros(1)]).param_groups[0].keys()) - WAYS  # type: ignore[call-arg]


def _has_inf(saved: Mapping[str, Any]) -> bool:
    return any("exp_inf" in state for state in saved.get("state", {}).values())


def _places(module: nn.Module, saved: Mapping[str, Any]) -> Assignment:
    """Names by group. torch numbers parameters in the order they were handed over."""
    named = list(module.named_parameters())
    groups = saved["param_groups"]
    if all("param_names" in group for group in groups):
        return [_known(group["param_names"], dict(named)) for group in groups]
    sizes = [len(group["params"]) for group in groups]
    fitting = [a for a in _candidates(named, sizes) if _shapes_fit(a, dict(named), saved)]
    if not fitting:
        raise SimudyError(
            f"the file's optimizer holds {sum(sizes)} parameters of other shapes than the model's "
            f"{len(named)}: save the state that goes with these weights, or leave it out"
        )
    if any(a != fitting[0] for a in fitting[1:]) and not _all_alike(groups):
        raise SimudyError(
            f"the file's optimizer has groups of {' and '.join(map(str, sizes))} parameters, and "
            "does not tell which: give torch the named ones (model.named_parameters()), or say "
            "inner={_target_: simudy.dynamics.optim.Groups, rules: …}"
        )
    return fitting[0]


def _known(names: list[str], named: Mapping[str, Any]) -> list[str]:
    """The model's names, where the file's may have a prefix more."""
    found = []
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[i:]) for i in range(len(parts))]
        found += [end for end in ends if end in named][:1]
    if len(found) != len(names):
        raise SimudyError(
            f"the file's optimizer names {names[0]!r} …, which the model has not: leave its state "
            "out, or set another model"
        )
    return found


def _candidates(named: list[tuple[str, nn.Parameter]], sizes: list[int]) -> Iterator[Assignment]:
    """In the module's order, or split by what people split by: matrices and vectors, either
    first; a head, then the rest.
    """
    pools = {tuple(named): None, tuple((k, p) for k, p in named if p.requires_grad): None}
    for pool in (list(pool) for pool in pools if len(pool) == sum(sizes)):
        by_rank = sorted(pool, key=lambda one: one[1].ndim < 2)
        yield _cut(pool, sizes)
        if len(sizes) > 1:
            yield _cut(by_rank, sizes)
            yield _cut(sorted(pool, key=lambda one: one[1].ndim > 1), sizes)
            yield _cut([*pool[-sizes[0] :], *pool[: -sizes[0]]], sizes)


def _cut(pool: list[tuple[str, nn.Parameter]], sizes: list[int]) -> Assignment:
    names, cut = [name for name, _ in pool], []
    for size in sizes:
        cut.append(names[:size])
        names = names[size:]
    return cut


def _shapes_fit(
    places: Assignment, named: Mapping[str, nn.Parameter], saved: Mapping[str, Any]
) -> bool:
    """Whether every moment has the shape of the parameter it would belong to."""
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    names = dict(zip(numbers, (name for group in places for name in group), strict=True))
    moments = (
        (number, value)
        for number, state in saved.get("state", {}).items()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim and number in names
    )
    return all(value.shape == named[names[number]].shape for number, value in moments)


def _all_alike(groups: list[Mapping[str, Any]]) -> bool:
    said = [{k: v for k, v in group.items() if k not in {"params", *_NAMES}} for group in groups]
    return all(one == said[0] for one in said)


def steps_of(saved: Mapping[str, Any]) -> int | None:
    """Steps that the optimizer counted, where its kind counts them."""
    counts = {int(s["step"]) for s in saved.get("state", {}).values() if "step" in s}
    return counts.pop() if len(counts) == 1 else None
