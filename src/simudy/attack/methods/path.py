"""A path with points that do not move, and where a rule ends on gradients taken at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from simudy.dynamics import tree
from simudy.dynamics.adjoint import Adjoint
from simudy.dynamics.gradient.collective import Summed, place, same
from simudy.dynamics.optim import Rule
from simudy.dynamics.optim.rule import advance, end_on
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

Grads = Callable[[Params, Any], Params]  # ∇ℓ of (θ, batch)
_PROBE = 1e3  # far beyond where a clipping rule clips


@dataclass(frozen=True)
class Path:
    """Where each step's gradient is taken.

    Attributes:
        points: weights, one a step.
        kept: the gradients that the dummies had as the path was made; None: all steps are taken.
        taken: the steps that are, where not all.
    """

    points: Sequence[Params]
    kept: Sequence[Params] | None = None
    taken: frozenset[int] = frozenset()

    def grad(self, grads: Grads, t: int, batch: Any) -> Params:
        """The gradient of step ``t``. Where few steps are taken, each changes from what it was by
        as many times its own change as it stands for steps, and the others do not.
        """
        if self.kept is None:
            return grads(self.points[t], batch)
        if t not in self.taken:
            return self.kept[t]
        times = len(self.points) / len(self.taken)
        return tree.map(
            lambda new, old: old + times * (new - old), grads(self.points[t], batch), self.kept[t]
        )


def new_path(
    points: Sequence[Params], batches: Sequence[Any], grads: Grads, *, nodes: int | None, seed: int
) -> Path:
    """A path on which ``nodes`` steps are taken, drawn one from each of as many stretches; None:
    all.
    """
    steps = len(points)
    if nodes is None or nodes >= steps:
        return Path(points)
    draws = torch.rand(nodes, generator=torch.Generator().manual_seed(seed)).tolist()
    taken = frozenset(int((i + draw) * steps / nodes) for i, draw in enumerate(draws))
    kept = [grads(point, batch) for point, batch in zip(points, batches, strict=True)]
    return Path(points, kept, taken)


def bent(points: Sequence[Params], end: Params, final: Params) -> list[Params]:
    """A path moved along by what it misses ``final`` by: not at its start, wholly at its end."""
    missed = tree.sub(final, end)
    return [tree.add(point, tree.scale(t / len(points), missed)) for t, point in enumerate(points)]


def end_on_path(
    grad: Callable[[int, Any], Params],
    start: Params,
    batches: Sequence[Any],
    rules: Sequence[Rule],
    *,
    adjoint: Adjoint,
) -> Params:
    """Where the rules end from ``start`` on the gradients ``grad(t, batch)``."""

    def step(carry: Any, x: tuple[int, Any, Rule]) -> tuple[Any, None]:
        (params, state), (t, batch, rule) = carry, x
        return advance(rule, lambda *_: grad(t, batch), batch, state, params), None

    carry, xs = (start, rules[0].init(start)), zip(range(len(rules)), batches, rules, strict=True)
    (end, state), _ = adjoint.fold(step, carry, list(xs))
    return rules[-1].final(end, state)


def end_of_shares(
    grad: Callable[[int, Any], Params],
    start: Params,
    batches: Sequence[Any],
    rules: Sequence[Rule],
    *,
    adjoint: Adjoint,
    group: Any = None,
) -> Params:
    """As ``end_on_path``, of rules whose end is a sum (see ``require_sum``): process r of R takes
    the gradients of steps r, r + R, … and the sums over the processes are one all-reduce.
    """
    rank, ranks = place(group, of="Anchored(shared=True)")
    nothing = tree.map(torch.zeros_like, start)

    def own(t: int, batch: Any) -> Params:
        return _whole(grad(t, batch), start) if t % ranks == rank else nothing

    batches, shared_rules = same(group, (list(batches), list(rules)))
    part = end_on_path(own, nothing, batches, shared_rules, adjoint=adjoint)
    whole = Summed.apply(group, *part.values())
    along = end_on(rules, start, lambda _: nothing)
    return tree.add(along, dict(zip(part, whole, strict=True)))


def _whole(grads: Params, start: Params) -> Params:
    if missing := [name for name in start if name not in grads]:
        raise SimudyError(
            f"Anchored(shared=True) wants a loss of every parameter, and {missing[0]!r} is not "
            "touched: leave it frozen, or use one process"
        )
    return grads


def require_sum(rules: Sequence[Rule], params: Params) -> None:
    """Refuse rules that do more than add up: where they end must be linear in where they begin and
    the gradients together. It is tried, on small tensors.

    Raises:
        SimudyError: it is not.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Params:
        return {
            name: _PROBE * torch.randn(_small(p), generator=generator, dtype=torch.float64)
            for name, p in params.items()
        }

    starts, grads = [drawn(), drawn()], [[drawn() for _ in rules] for _ in range(2)]
    both = [tree.add(a, b) for a, b in zip(*grads, strict=True)]
    apart = [end_on(rules, start, g.__getitem__) for start, g in zip(starts, grads, strict=True)]
    together = end_on(rules, tree.add(*starts), both.__getitem__)
    for name, value in tree.add(*apart).items():
        if not torch.allclose(value, together[name], rtol=1e-6):
            raise SimudyError(
                f"Anchored(shared=True) adds up what processes did, and {type(rules[0]).__name__} "
                "does more with a gradient than add it: use one process, or parallel=images"
            )


def _small(param: torch.Tensor) -> list[int]:
    """A shape of as many dimensions, for a rule may look at these."""
    return [min(size, 2) for size in param.shape]
