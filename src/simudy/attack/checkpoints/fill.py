"""What nobody typed of the recipe, out of what a training script saved beside the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Set
from numbers import Integral
from typing import Any

from torch import nn

from simudy.attack.checkpoints.saved_optimizer import (
    class_names,
    cycles_momentum,
    rule_of,
    saved_optimizers,
    steps_of,
)
from simudy.attack.checkpoints.saved_scheduler import (
    rates_of,
    saved_schedulers,
    scheduler_of,
    told,
)
from simudy.dynamics.optim import AdamW, Groups
from simudy.dynamics.optim.rule import PerTensor, Rule
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError


@dataclasses.dataclass(frozen=True)
class Files:
    """Both files as they were read, and what else bears on the length of the run.

    Attributes:
        initial, final: what ``load_weights`` gave.
        n: number of images, if known.
        batches: that the norms counted, if they did.
        typed: settings that a person typed, as ``inner.lr``, ``recipe.epochs``.
    """

    initial: Any
    final: Any
    n: int | None
    batches: int | None
    typed: Set[str]


def fill(recipe: Recipe, module: nn.Module, files: Files) -> tuple[Recipe, list[str]]:
    """``recipe`` with what nobody typed taken from saved states, and a sentence for each part.

    Raises:
        SimudyError: a state contradicts what was typed, or other states, or does not tell.
    """
    rule, lines = _rule(recipe, module, files)
    recipe = dataclasses.replace(recipe, optimizer=rule)
    for part in (_length, _scheduler):
        recipe, said = part(recipe, files)
        lines += said
    return recipe, [*lines, *_assumed(recipe, files)]


def _assumed(recipe: Recipe, files: Files) -> Iterator[str]:
    """What neither a person nor the files tell, and how many epochs trainers counted: as some count
    from 0, that is no proof.
    """
    rule = type(recipe.optimizer).__name__
    if "inner.lr" not in files.typed and not _optimizers(files) and hasattr(recipe.optimizer, "lr"):
        yield f"nobody told {rule}(lr={recipe.optimizer.lr}): assumed"  # type: ignore
    told = dict(_counts(recipe, files)) or next(saved_schedulers(files.final), None)
    if "recipe.epochs" in files.typed or told or not (isinstance(recipe.order, str | None)):
        return
    epochs = [one.get("epoch") for one in (files.initial, files.final) if isinstance(one, Mapping)]
    counted = [str(e) for e in epochs if isinstance(e, Integral)]  # numpy's among them
    hint = f" (the files' epoch: {' and '.join(counted)})" if counted else ""
    yield f"nobody told Recipe(epochs={recipe.epochs}): assumed{hint}"


# --- the rule


def _rule(recipe: Recipe, module: nn.Module, files: Files) -> tuple[Rule, list[str]]:
    held = _optimizers(files)
    ours = recipe.optimizer
    if not held or not isinstance(ours, PerTensor):
        return ours, []
    states = [saved["state"] for saved in held if saved.get("state")]
    saved = {**held[0], "state": states[0] if states else {}}  # whose shapes tell groups apart
    if "inner._target_" in files.typed and not _is_of(ours, saved):
        return ours, []  # refused where it is compared
    decoupled = isinstance(ours, AdamW) if "inner._target_" in files.typed else None
    found = rule_of(module, saved, moments=False, decoupled=decoupled)
    typed = {
        f.name
        for f in dataclasses.fields(ours)  # type: ignore[arg-type]
        if f"inner.{f.name}" in files.typed
    }
    cycled = {"momentum", "beta1"} if cycles_momentum(saved["param_groups"][0]) else set()
    for name in sorted(typed - cycled):
        _require_typed(found, name, getattr(ours, name))
    return found, [f"the optimizer was {_shown(found)}"]


def _optimizers(files: Files) -> list[Mapping[str, Any]]:
    return [*saved_optimizers(files.initial), *saved_optimizers(files.final)]


def _is_of(rule: Rule, saved: Mapping[str, Any]) -> bool:
    return type(rule).__name__ in class_names(saved["param_groups"][0])


def _require_typed(found: Rule, name: str, value: Any) -> None:
    for rule in _members(found):
        held = getattr(rule, name, value)
        pair = [tuple(v) if isinstance(v, (tuple, list)) else float(v) for v in (held, value)]
        if pair[0] != pair[1]:
            raise SimudyError(
                f"the file's optimizer has {name}={held}, the recipe {value}: set "
                f"{type(rule).__name__}({name}={held}), or leave it out"
            )


def _members(rule: Rule) -> list[Rule]:
    """The rules of a rule's groups, each once."""
    if not isinstance(rule, Groups):
        return [rule]
    different: list[Rule] = []
    for one in rule.rules.values():
        different += [] if one is None or one in different else [one]
    return different


def _shown(rule: Rule) -> str:
    """``SGD with lr 0.1, momentum 0.9``: what differs from the rule's defaults."""
    return " and ".join(map(_one_shown, _members(rule)))


def _one_shown(rule: Rule) -> str:
    held = [(f, getattr(rule, f.name)) for f in dataclasses.fields(rule)]  # type: ignore[arg-type]
    words = [f"{f.name} {v}" for f, v in held if f.name == "lr" or v != f.default]
    return f"{type(rule).__name__} with {', '.join(words)}"


# --- the length


def _length(recipe: Recipe, files: Files) -> tuple[Recipe, list[str]]:
    counts = dict(_counts(recipe, files))
    if not counts or not (isinstance(recipe.order, str) or recipe.order is None):
        return recipe, []
    if len(set(counts.values())) > 1:
        words = ", ".join(f"{source} {count}" for source, count in counts.items())
        raise SimudyError(
            f"the files disagree about the number of batches ({words}): set "
            "Recipe(accumulate=…), or give files of one run"
        )
    source, batches = next(iter(counts.items()))
    each = _batches_per_epoch(recipe, files.n)
    if each is None:
        return recipe, []
    if "recipe.epochs" in files.typed:
        if recipe.epochs * each != batches:
            raise SimudyError(
                f"{source} {batches} batches between the files, the recipe has "
                f"{recipe.epochs * each}: set Recipe(epochs=…, batch_size=…) and "
                "Evidence(n=…) to what the run had"
            )
        return recipe, []
    if batches % each or not batches:
        raise SimudyError(
            f"{source} {batches} batches between the files, which are no epochs of {each}: set "
            "Recipe(batch_size=…) and Evidence(n=…) to what the run had"
        )
    line = f"{source} {batches} batches: {batches // each} epochs"
    return dataclasses.replace(recipe, epochs=batches // each), [line]


def _counts(recipe: Recipe, files: Files) -> Iterator[tuple[str, int]]:
    """How many batches, and who says so."""
    if files.batches:
        yield "the norms saw", files.batches
    for source, count in (("the optimizer took", _steps), ("the trainer counted", _global_steps)):
        if (end := count(files.final)) is not None and end > (start := count(files.initial) or 0):
            yield source, (end - start) * recipe.accumulate


def _steps(loaded: Any) -> int | None:
    return next((steps_of(saved) for saved in saved_optimizers(loaded)), None)


def _global_steps(loaded: Any) -> int | None:
    """As Lightning counts them."""
    count = loaded.get("global_step") if isinstance(loaded, Mapping) else None
    return count if isinstance(count, int) else None


def _batches_per_epoch(recipe: Recipe, n: int | None) -> int | None:
    if n is not None:
        return dataclasses.replace(recipe, epochs=1).steps(n)
    return 1 if recipe.batch_size is None else None


# --- the schedule


def _scheduler(recipe: Recipe, files: Files) -> tuple[Recipe, list[str]]:
    end = next(saved_schedulers(files.final), None)
    start = next(saved_schedulers(files.initial), None)
    if end is None or recipe.schedule is not None or "recipe.scheduler" in files.typed:
        return recipe, []
    begun = int(start["last_epoch"]) if start else 0
    found, count = scheduler_of(end), int(end["last_epoch"]) - begun
    if count < 1:
        return recipe, []
    recipe = _with_epochs(recipe, files, count)
    per, batches = _stepped(recipe, files.n, count, told(found))
    line = f"the schedule was {told(found)}, stepped each {per}"
    if not begun:
        return dataclasses.replace(recipe, scheduler=found, scheduler_per=per), [line]
    base = float(end["base_lrs"][0])
    rates = rates_of(found, base=base, count=begun + count)[begun:]
    factors = [rates[i * count // batches] / base for i in range(batches)]
    return dataclasses.replace(recipe, schedule=factors), [f"{line}, {begun} times before"]


def _with_epochs(recipe: Recipe, files: Files, count: int) -> Recipe:
    """Where nothing else tells how long the run was, a schedule stepped each epoch does."""
    known = "recipe.epochs" in files.typed or dict(_counts(recipe, files))
    each_epoch = recipe.scheduler_per == "epoch"
    return recipe if known or not each_epoch else dataclasses.replace(recipe, epochs=count)


def _stepped(recipe: Recipe, n: int | None, count: int, name: str) -> tuple[Any, int]:
    """``epoch`` or ``step``, whichever the scheduler was stepped after, and the run's batches."""
    each = _batches_per_epoch(recipe, n)
    if count == recipe.epochs:
        return "epoch", recipe.epochs * (each or 1)
    if each is not None and count * recipe.accumulate == recipe.epochs * each:
        return "step", recipe.epochs * each
    raise SimudyError(
        f"the files' {name} was stepped {count} times, the recipe has {recipe.epochs} epochs"
        f"{f' of {each} batches' if each else ''}: set "
        "Recipe(epochs=…, batch_size=…) and Evidence(n=…) to what the run had"
    )
