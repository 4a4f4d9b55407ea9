"""The recipe of a run that was seen: order, accumulation, rates as they were, clipping, loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from simudy.app.recorder.seen_loss import SeenLoss
from simudy.app.recorder.seen_run import Step
from simudy.app.recorder.taps import Taps
from simudy.dynamics.optim import Clipped, ClippedByValue, Rule, from_torch
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError

_MOVING = ("lr", "momentum", "betas")
_CLOSE = 1e-5  # relative: norms and rates are of float32 at the least


def recipe_of(taps: Taps) -> Recipe:
    """How the run went, as an attacker may be told.

    Raises:
        SimudyError: in a way that no recipe can say.
    """
    every = _accumulated(taps.steps)
    rule, factors = _rates(taps)
    rule = _clipped(rule, taps.steps)
    if factors:
        factors = {k: [f for f in each for _ in range(every)] for k, each in factors.items()}
    batches = [batch.rows for step in taps.steps for batch in step.batches]
    schedule = factors.get("lr") if factors.keys() <= {"lr"} else factors
    told = {"accumulate": every, "schedule": schedule}
    for candidate in _divisions(rule, batches, len(taps.album), told):
        if [b.tolist() for b in candidate.batches(len(taps.album))] == batches:
            return candidate
    raise AssertionError("the last division names every batch")


def loss_of(steps: list[Step]) -> SeenLoss:
    """The loss of all steps.

    Raises:
        SimudyError: there were several.
    """
    first = steps[0].batches[0].loss
    for t, step in enumerate(steps, start=1):
        if not all(batch.loss.same_as(first) for batch in step.batches):
            raise SimudyError(
                f"the loss changes in step {t}: record the parts before and after by themselves"
            )
    return first


def _accumulated(steps: list[Step]) -> int:
    """Batches per step."""
    every = len(steps[0].batches)
    for t, step in enumerate(steps, start=1):
        if len(step.batches) != every:
            raise SimudyError(
                f"step {t} gathers {len(step.batches)} batches and the first gathers {every}: make "
                "their number a multiple, or drop the rest (drop_last=True)"
            )
    factors = [(t, batch.factor) for t, step in enumerate(steps, 1) for batch in step.batches]
    for t, factor in factors:
        if abs(factor * every - 1) > _CLOSE:
            raise SimudyError(
                f"the loss enters step {t} times {factor:.6g} where the mean over {every} would be "
                f"times {1 / every:.6g}: leave gradient scaling (AMP) and other factors out, and "
                "divide by the number of batches that are gathered"
            )
    return every


def _rates(taps: Taps) -> tuple[Rule, dict[str, list[float]]]:
    """The rule at its highest rates, and factors on them by step where they move."""
    groups = list(zip(*(step.options for step in taps.steps), strict=True))
    if any(len(step.options) != len(taps.optimizer.param_groups) for step in taps.steps):
        raise SimudyError("a parameter group is added under way: record the parts by themselves")
    for group, seen in zip(taps.optimizer.param_groups, groups, strict=True):
        _require_still(seen)
        group.update({k: _highest(k, seen) for k in _MOVING if k in group})
    rule = from_torch(taps.optimizer, [(k, p) for k, p in taps.named.items() if p.requires_grad])
    factors = {
        "lr": _factors("lr", [[float(o["lr"]) for o in seen] for seen in groups]),
        "momentum": _factors("momentum", [[o.get("momentum", 0.0) for o in g] for g in groups]),
        "beta1": _factors("beta1", [[o.get("betas", (0.0,))[0] for o in g] for g in groups]),
    }
    return rule, {name: each for name, each in factors.items() if each}


def _highest(name: str, seen: tuple[dict[str, Any], ...]) -> Any:
    if name == "betas":
        return max(o["betas"][0] for o in seen), *seen[0]["betas"][1:]
    return max(float(o[name]) for o in seen)


def _require_still(seen: tuple[dict[str, Any], ...]) -> None:
    """All but rates and momenta."""
    first = {k: v for k, v in seen[0].items() if k not in _MOVING}
    for t, options in enumerate(seen, start=1):
        moved = [k for k, v in first.items() if k in options and not _same(options[k], v)]
        moved += ["betas"] if options.get("betas", ())[1:] != seen[0].get("betas", ())[1:] else []
        if moved:
            raise SimudyError(
                f"the optimizer's {moved[0]} changes in step {t}: record the parts before and "
                "after by themselves"
            )


def _same(ours: Any, theirs: Any) -> bool:
    return bool(ours == theirs) if not isinstance(ours, Tensor) else torch.equal(ours, theirs)


def _factors(name: str, curves: list[list[float]]) -> list[float]:
    """Of the highest value, by step; none where nothing moves."""
    shapes = [[v / max(curve) for v in curve] for curve in curves if max(curve) > 0]
    if not shapes or all(f == 1 for shape in shapes for f in shape):
        return []
    for shape in shapes[1:]:
        if any(abs(a - b) > 1e-9 for a, b in zip(shape, shapes[0], strict=True)):
            raise SimudyError(
                f"{name} moves otherwise in one parameter group than in another, which one "
                "schedule cannot say: give the groups one schedule"
            )
    return shapes[0]


def _clipped(rule: Rule, steps: list[Step]) -> Rule:
    """The rule inside of the clipping that was seen between gradients made and used."""
    cut = [s for s in steps if not torch.allclose(s.made, s.used, rtol=1e-6, atol=0.0)]
    if not cut:
        return rule
    left = [s for s in steps if not any(s is other for other in cut)]
    if all(_uniform(s) for s in cut):
        # torch divides by the norm + 1e-6
        bound = _common([_norm(s.used) * (1 + 1e-6 / _norm(s.made)) for s in cut])
        if bound and all(_norm(s.made) <= bound * (1 + _CLOSE) for s in left):
            return Clipped(rule, max_norm=bound)
    bound = _common([_largest(s.used) for s in cut])
    if bound and all(_largest(s.made) <= bound * (1 + _CLOSE) for s in left):
        return ClippedByValue(rule, max_value=bound)
    t = next(t for t, s in enumerate(steps, start=1) if s is cut[0])
    raise SimudyError(
        f"gradients change between the backward pass and step {t}, and neither by clip_grad_norm_ "
        "nor by clip_grad_value_ with one bound: leave that out"
    )


def _norm(sizes: Tensor) -> float:
    """Over all parameters."""
    return float(sizes[:, 0].norm())


def _largest(sizes: Tensor) -> float:
    """Entry of any parameter."""
    return float(sizes[:, 1].max())


def _uniform(step: Step) -> bool:
    """Whether every gradient was multiplied by the same number."""
    factor = _norm(step.used) / _norm(step.made)
    return torch.allclose(step.used, step.made * factor, rtol=1e-4, atol=1e-30)


def _common(values: list[float]) -> float | None:
    """What all values are, rounded as a person would have written it; None if they differ."""
    middle = sorted(values)[len(values) // 2]
    if any(abs(v - middle) > _CLOSE * middle for v in values):
        return None
    written = float(f"{middle:.4g}")
    return written if abs(written - middle) <= 2e-6 * middle else middle


def _divisions(
    rule: Rule, batches: list[list[int]], n: int, told: dict[str, Any]
) -> Iterator[Recipe]:
    """Recipes that may have divided the images so, the shortest first."""
    largest, rows = max(map(len, batches)), [i for batch in batches for i in batch]
    size = None if largest == n else largest
    epochs, left = divmod(len(rows), n)
    if not left:
        in_turn = [rows[e * n : (e + 1) * n] for e in range(epochs)]
        yield Recipe(rule, epochs=epochs, batch_size=size, **told)
        yield Recipe(rule, epochs=epochs, batch_size=size, order=in_turn, **told)
    yield Recipe(rule, epochs=1, order=batches, **told)
