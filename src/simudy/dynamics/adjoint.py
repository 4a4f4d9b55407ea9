"""How the fold over training steps is differentiated: what is kept, and what is computed again.

An adjoint folds a pure ``step(carry, x) -> (carry, out)`` over a list. All of them give the same
derivative, but for those that say otherwise by their name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from simudy.dynamics import tree
from simudy.dynamics.custom_vjp import (
    custom_vjp,
    is_followed,
    is_plain_wanted,
    reverse_pullback,
)
from simudy.errors import SimudyError
from simudy.ranges import COUNT

Step = Callable[[Any, Any], tuple[Any, Any]]


class Adjoint:
    """Base of the adjoints.

    Attributes:
        end_alone: only the last iterate is differentiated: no state, no average, nothing observed.
    """

    end_alone: ClassVar[bool] = False

    def fold(self, step: Step, carry: Any, xs: Sequence[Any]) -> tuple[Any, list[Any]]:
        """``step`` over ``xs``, from ``carry``, differentiably: the last carry, and what each step
        gave out.

        Args:
            step: ``(carry, x) -> (carry, out)``; that of a simulation has ``grads`` too.
            carry: in a simulation, the parameters and the optimizer's state.
            xs: in a simulation, ``(number, batch, rule)`` of each step.
        """
        raise NotImplementedError

    def kept(self, steps: int, *, per_step: int, params: int) -> int:
        """Bytes kept over the whole fold, in about.

        Args:
            steps: how many.
            per_step: bytes that the gradient mode keeps of one (``Gradient.kept``).
            params: bytes of θ.
        """
        raise NotImplementedError

    def leaner(self, steps: int) -> Adjoint | None:
        """The next one that keeps less and takes longer, or None: this one is the leanest."""
        return None


@dataclass(frozen=True)
class Direct(Adjoint):
    """Plain autograd through every step. Memory: what the gradient mode keeps per step, times the
    steps.
    """

    def fold(self, step: Step, carry: Any, xs: Sequence[Any]) -> tuple[Any, list[Any]]:
        outs = []
        for x in xs:
            carry, out = step(carry, x)
            outs.append(out)
        return carry, outs

    def kept(self, steps: int, *, per_step: int, params: int) -> int:
        return per_step * steps

    def leaner(self, steps: int) -> Adjoint | None:
        return Recompute(every=math.isqrt(steps))


@dataclass(frozen=True)
class Recompute(Adjoint):
    """Keep the carry (θ and optimizer state) every ``every`` steps and replay the rest during the
    backward pass.

    Memory: one carry per segment plus the graph of one segment. Time: one more forward simulation.
    Reference: Griewank & Walther, Algorithm 799: revolve, ACM TOMS 2000; Chen et al.,
    arXiv:1604.06174.

    Args:
        every: steps per segment, at least 1; about √steps balances the two terms.
    """

    every: Annotated[int, COUNT] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise SimudyError(f"Recompute(every={self.every}): keep θ every 1 or more steps")

    def fold(self, step: Step, carry: Any, xs: Sequence[Any]) -> tuple[Any, list[Any]]:
        outs = []
        for start in range(0, len(xs), self.every):
            carry, given = _replayed(step, carry, list(xs[start : start + self.every]))
            outs += given
        return carry, outs

    def kept(self, steps: int, *, per_step: int, params: int) -> int:
        return params * math.ceil(steps / self.every) + per_step * min(self.every, steps)


@dataclass(frozen=True)
class Truncated(Adjoint):
    """Inexact by name: the gradient through the last ``last`` steps alone, as of a run begun there.

    The steps before run without a graph, and what they come to is a constant: θ0 and what enters
    those steps alone receive no gradient from them. Memory: that of ``inner`` over ``last`` steps,
    however long the run; time of the others: that of training. Reference: Shaban et al., Truncated
    back-propagation for bilevel optimization, AISTATS 2019, arXiv:1810.10667.

    Args:
        last: steps that are differentiated, at least 1; no fewer than there are is exact.
        inner: how they are.
    """

    last: Annotated[int, COUNT] = 1
    inner: Adjoint = Direct()

    def __post_init__(self) -> None:
        if not isinstance(self.last, int) or self.last < 1:
            raise SimudyError(
                f"Truncated(last={self.last}): differentiate the last 1 or more steps"
            )

    @property
    def end_alone(self) -> bool:  # type: ignore[override]
        return self.inner.end_alone

    def fold(self, step: Step, carry: Any, xs: Sequence[Any]) -> tuple[Any, list[Any]]:
        first = max(len(xs) - self.last, 0)
        if not first:
            return self.inner.fold(step, carry, xs)
        with torch.no_grad():
            carry, early = Direct().fold(step, *constant((carry, list(xs[:first]))))
        carry = constant(carry)  # once more, for what came in by the back door
        end, outs = self.inner.fold(step, carry, xs[first:])
        return end, early + outs

    def kept(self, steps: int, *, per_step: int, params: int) -> int:
        return self.inner.kept(min(self.last, steps), per_step=per_step, params=params)

    def leaner(self, steps: int) -> Adjoint | None:
        inner = self.inner.leaner(min(self.last, steps))
        return None if inner is None else replace(self, inner=inner)


def constant(node: Any) -> Any:
    """A tree cut from every graph, forward ones too. A tensor of none stays the same object, as
    which others may know it.
    """
    leaves = tree.leaves(node)
    return tree.rebuild(node, [leaf.detach() if is_followed(leaf) else leaf for leaf in leaves])


def _replayed(step: Step, carry: Any, xs: list[Any]) -> tuple[Any, list[Any]]:
    """The carry after ``xs``, and what they gave out. Nothing inside is kept: the backward pass
    runs the steps again.
    """
    inputs, ends = (carry, xs), []
    if is_plain_wanted(inputs):  # nothing is kept for a backward pass
        return Direct().fold(step, carry, xs)
    given = tree.leaves(inputs)

    def run(leaves: Sequence[Tensor], ends: list[Any] | None = None) -> tuple[Tensor, ...]:
        end = Direct().fold(step, *tree.rebuild(inputs, leaves))
        place = {id(leaf): i for i, leaf in enumerate(leaves)}
        passed = [
            place.get(id(leaf)) for leaf in tree.leaves(end)
        ]  # a leaf handed through stays the same object
        if (
            ends is not None
        ):  # a replay must not leave its end behind: it would keep the segment's graph alive
            _require_in_sight(end)
            ends.append((end, passed))
        return tuple(leaf for leaf, i in zip(tree.leaves(end), passed, strict=True) if i is None)

    pullback = partial(reverse_pullback, run)
    outputs = iter(custom_vjp(partial(run, ends=ends), pullback, given, plain=run))
    end, passed = ends.pop()
    return tree.rebuild(end, [next(outputs) if i is None else given[i] for i in passed])


def _require_in_sight(end: Any) -> None:
    if (found := tree.hiding(end)) is not None:
        raise SimudyError(
            f"a {type(found).__name__} that a step gave out holds tensors where Recompute() does "
            "not see them: let observe return, and a rule keep as its state, tensors in dicts, "
            "lists, tuples or dataclasses, or use Direct()"
        )
