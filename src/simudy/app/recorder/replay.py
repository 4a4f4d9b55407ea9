"""The recorded run again, by ``simulate``: does it land where the script's did?

A run in float64 must be met to ``TOLERANCE`` of its displacement. One in float32 rounds its weights
and gradients in every step, and the script need not have rounded as the replay does. So where the
replay in the run's own precision misses ``TOLERANCE``, it is done in float64 too: the distance of
the two is what rounding alone does to this very run, and ``SLACK`` times that is borne. Parameters
of which rounding moves more than ``LIMIT`` are named and left out; where they are most of the run,
nothing can be told from it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simudy.dynamics import tree
from simudy.dynamics.model import StatelessModel
from simudy.dynamics.recipe import Recipe
from simudy.dynamics.simulate import simulate
from simudy.dynamics.tree import Params

TOLERANCE, SLACK, LIMIT = 1e-6, 10.0, 1e-3


@dataclass(frozen=True)
class Verdict:
    """Whether the replay follows the run.

    Attributes:
        faithful: it does, at every step that was kept.
        error: at the end, relative to the displacement.
        tolerance: that it was held against.
        departs: the first step that differs, or None.
        after: the last step before it that was looked at.
        loose: parameters that were not looked at, as rounding alone moves them.
    """

    faithful: bool
    error: float
    tolerance: float
    departs: int | None = None
    after: int = 0
    loose: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.faithful:
            near = f"within {self.error:.1e} of the displacement (tolerance {self.tolerance:.1e})"
            return f"faithful: the replay lands {near}{self._beside()}"
        if self.departs is None:
            return (
                f"not faithful: float32 rounding alone moves {self.loose[0]} "
                f"by more than {LIMIT:.0e} of the displacement, so that nothing can be told: "
                "record the run in float64 (model.double())"
            )
        between = f" (after step {self.after})" if self.departs > self.after + 1 else ""
        return (
            f"not faithful: step {self.departs}{between} is the first that differs, and the replay "
            f"ends {self.error:.1e} of the displacement away: leave out what the script does to "
            "weights, gradients or loss there beside forward, backward and step"
        )

    def _beside(self) -> str:
        few = ", ".join(self.loose[:3]) + (", …" if len(self.loose) > 3 else "")
        return f", but for {few}, which rounding alone moves" if self.loose else ""


@torch.no_grad()
def replay(
    model: StatelessModel, recipe: Recipe, images: Tensor, labels: Tensor, trail: dict[int, Params]
) -> Verdict:
    """Simulate the run and hold it against the weights that were kept along the way.

    Args:
        model: at θ0, in the run's precision and on its device.
        recipe: of the run.
        images, labels: ``(n, …)``, each once.
        trail: weights by the number of steps taken.
    """
    start = {name: p.cpu() for name, p in model.params.items()}
    ours = _again(model, recipe, images, labels, trail)
    errors = _relative(ours, trail, moved=trail, start=start)
    if max(errors.values()) <= TOLERANCE or not _is_narrow(start):
        return _judge(errors, dict.fromkeys(errors, TOLERANCE))
    exact = _again(
        model.to(torch.float64), _double(recipe), _double(images), _double(labels), trail
    )
    loose = _undetermined(ours, exact, trail, start)
    kept = {name: p for name, p in start.items() if name not in loose}
    if not _holds_most(kept, trail[max(trail)], start):
        return Verdict(False, errors[max(errors)], LIMIT, loose=tuple(loose))
    errors = _relative(ours, trail, moved=trail, start=kept)
    rounding = _relative(ours, exact, moved=trail, start=kept)
    limits = {t: max(TOLERANCE, SLACK * r) for t, r in rounding.items()}
    return _judge(errors, limits, loose=tuple(loose))


def _judge(
    errors: dict[int, float], limits: dict[int, float], *, loose: tuple[str, ...] = ()
) -> Verdict:
    last = max(errors)
    departs = [t for t in errors if not errors[t] <= limits[t]]
    if departs:
        before = [t for t in errors if t < departs[0]]
        place = departs[0], max(before, default=0)
        return Verdict(False, errors[last], limits[last], *place, loose=loose)
    return Verdict(True, errors[last], limits[last], loose=loose)


def _undetermined(
    ours: dict[int, Params], exact: dict[int, Params], trail: dict[int, Params], start: Params
) -> list[str]:
    """Parameters whose way is mostly rounding: a bias before a BatchNorm has a gradient of zero, of
    whose last digits Adam makes whole steps.
    """
    last = max(trail)
    return [
        k
        for k, p in start.items()
        if _distance({k: ours[last][k]}, exact[last])
        > LIMIT * _distance({k: trail[last][k]}, {k: p})
    ]


def _holds_most(kept: Params, final: Params, start: Params) -> bool:
    """Whether most of the displacement is theirs."""
    if not kept:
        return False
    return _distance(kept, final) >= 0.5 * _distance(start, final)


def _again(
    model: StatelessModel, recipe: Recipe, images: Tensor, labels: Tensor, at: Collection[int]
) -> dict[int, Params]:
    """The simulated weights after these numbers of steps."""

    def kept(batch: int, params: Params, loss: Tensor) -> Params | None:
        steps, rest = divmod(batch + 1, recipe.accumulate)
        return None if rest or steps not in at else {k: p.cpu() for k, p in params.items()}

    device = next(iter(model.params.values())).device
    batches = recipe.collate(images.to(device), labels.to(device))
    rules = recipe.rules(len(images))
    _, seen = simulate(model.loss, model.params, batches, rules, observe=kept)
    return dict(zip(sorted(at), (params for params in seen if params is not None), strict=True))


def _relative(
    ours: dict[int, Params], theirs: dict[int, Params], *, moved: dict[int, Params], start: Params
) -> dict[int, float]:
    """‖ours − theirs‖ over the run's displacement, by step, of the parameters in ``start``."""
    return {
        t: _distance({k: ours[t][k] for k in start}, theirs[t])
        / max(_distance(start, moved[t]), 1e-300)
        for t in sorted(moved)
    }


def _distance(ours: Params, theirs: Params) -> float:
    differences = [(p.double() - theirs[name].double()).norm() for name, p in ours.items()]
    return float(torch.stack(differences).norm())


def _is_narrow(params: Params) -> bool:
    return any(p.dtype != torch.float64 for p in params.values())


def _double(value: Any) -> Any:
    leaves = tree.leaves(value)
    return tree.rebuild(value, [t.double() if t.is_floating_point() else t for t in leaves])
