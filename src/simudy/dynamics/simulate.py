"""The training run as a pure function: the whole algorithm on one page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from numbers import Integral
from typing import Any, Literal, TypeVar, overload

import torch

from simudy.dynamics.adjoint import Adjoint, Direct
from simudy.dynamics.gradient import Gradient, Reverse
from simudy.dynamics.loss import (
    ExactLoss,
    Observe,
    Observed,
    as_written,
    check_same,
    draws_refused,
)
from simudy.dynamics.nested import by_names, is_flat
from simudy.dynamics.optim.going_on import checked_state
from simudy.dynamics.optim.rule import Rule, advance
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

Tree = TypeVar("Tree")


@overload
def simulate(  # pyright: ignore[reportOverlappingOverload]
    loss: Callable[[Any, Any], Any],
    params: Tree,
    batches: Iterable[Any],
    optimizer: Rule | Sequence[Rule],
    *,
    steps: int | None = ...,
    adjoint: Adjoint = ...,
    gradient: Gradient = ...,
    state: Any = ...,
    return_state: Literal[False] = ...,
    observe: None = ...,
    buffers: None = ...,
) -> Tree: ...


@overload
def simulate(
    loss: Callable[[Any, Any], Any],
    params: Any,
    batches: Iterable[Any],
    optimizer: Rule | Sequence[Rule],
    *,
    steps: int | None = ...,
    adjoint: Adjoint = ...,
    gradient: Gradient = ...,
    state: Any = ...,
    return_state: bool = ...,
    observe: Observe | None = ...,
    buffers: Params | None = ...,
) -> tuple[Any, ...]: ...


def simulate(
    loss: Callable[[Any, Any], Any],
    params: Any,
    batches: Iterable[Any],
    optimizer: Rule | Sequence[Rule],
    *,
    steps: int | None = None,
    adjoint: Adjoint = Direct(),  # noqa: B008 (frozen)
    gradient: Gradient = Reverse(),  # noqa: B008 (frozen)
    state: Any = None,
    return_state: bool = False,
    observe: Observe | None = None,
    buffers: Params | None = None,
) -> Any:
    """Train from ``params`` on ``batches``, one step each, and return the final parameters,
    differentiably.

    θ_{t+1} = update_t(∇ℓ(θ_t, batch_t), state_t, θ_t). The result is differentiable with respect to
    ``params``, every floating tensor in ``batches`` and every tensor field of ``optimizer``,
    exactly, whatever the adjoint and the gradient mode, but for those that are inexact by name
    (``Truncated``, ``FirstOrder``).

    A run stops after a number of steps that is given beforehand: one that stops where the numbers
    say so has no derivative by the moment of stopping. Take θ_k, for any k, by ``observe``.

    Args:
        loss: ``(params, batch) -> scalar``, e.g. ``StatelessModel(module).loss``.
        params: initial parameters θ0, never mutated: tensors by name, or any nest of dicts, lists
            and tuples, in which case the loss, ``observe`` and the result have the same form, and a
            rule sees names such as ``layers.0.weight``.
        batches: one entry per step, e.g. ``(images, labels)``; the loss alone looks inside. With
            ``steps``, any iterable, such as a ``DataLoader``.
        optimizer: one rule for all steps, or one per step (a schedule); the state is handed from
            one to the next.
        steps: take as many batches, going through ``batches`` anew each time they end, as epochs
            do. All are held in memory for the run, for a replay must meet the same. Default: as
            many as there are in a list.
        adjoint: how the fold is differentiated (memory against time).
        gradient: how ∇ℓ is computed and differentiated.
        state: the optimizer's state to go on from, as ``return_state`` gave it or as
            ``from_torch(optimizer, module).init(params)`` reads it off a live one. It is
            differentiated as well. Default: that of a first step.
        return_state: give back ``(params, state)``, from which a run goes on: 5 steps and 5 are 10,
            to the bit. These are the last iterates; of a rule that averages,
            ``rule.final(params, state)`` is the average.
        observe: ``(step, params, loss) -> anything``, called at the end of each step with θ_{t+1}
            and the ℓ(θ_t, batch_t) it came by. A tree of tensors is differentiable as the end is,
            and kept under the same adjoint, which may call this again. It must be pure. Costs a
            forward pass a step.
        buffers: running statistics to start from, as ``model.buffers``, of the ``StatelessModel``
            whose ``model.loss`` this is. They are carried along as torch moves them in train mode,
            differentiably, and given back. Costs a forward pass a step.

    Returns:
        The final parameters; with ``return_state``, ``buffers`` or ``observe`` a tuple of these,
        the state, the buffers, and the list of what was observed, each where asked for.

    Raises:
        SimudyError: the number of rules differs from the number of batches, or there are fewer than
            ``steps``; the loss draws random numbers, or is otherwise another at its next call; the
            state is of another rule.

    Example:
        >>> import torch
        >>> from simudy.dynamics.optim import SGD
        >>> lr = torch.tensor(0.1, requires_grad=True)
        >>> loss = lambda params, batch: (params["w"] - batch[0]).square().sum()
        >>> end = simulate(loss, {"w": torch.ones(1)}, [(torch.zeros(1),)] * 2, SGD(lr=lr))
        >>> end["w"]  # (1 − 2η)²
        tensor([0.6400], grad_fn=<SubBackward0>)
        >>> end["w"].backward(); lr.grad
        tensor(-3.2000)
    """
    _require_kinds(optimizer, adjoint, gradient)
    loss = as_written(loss)
    batches, compiling = _listed(batches, steps), torch.compiler.is_compiling()
    if compiling or not is_flat(params):
        run: Any = _uncompiled if compiling else partial(by_names, simulate)
        options: dict[str, Any] = {"adjoint": adjoint, "gradient": gradient, "state": state}
        more = {"buffers": buffers, "return_state": return_state, "observe": observe}
        return run(loss, params, batches, optimizer, **options, **more)
    rules = _one_per_step(optimizer, len(batches))
    if not rules:
        return _asked(params, (state, return_state), (buffers, buffers is not None), ([], observe))
    _refuse_complex(params, rules)
    exact = ExactLoss(loss)
    check_same(exact, params, batches[0])
    held, grads = gradient.bind(exact, params, batches, rules)
    begun = rules[0].init(held) if state is None else checked_state(rules[0], state, held)

    with draws_refused(exact, params, batches):
        xs = list(zip(range(len(rules)), batches, rules, strict=True))
        watch = observe and Observed(observe)
        step = TrainingStep(exact, grads, watch, None if buffers is None else _mover(loss, buffers))
        (end, (state, moved)), seen = adjoint.fold(step, (held, (begun, buffers)), xs)
    published = end if return_state else rules[-1].final(end, state)
    alone = buffers is None and all(p is end[name] for name, p in published.items())
    if adjoint.end_alone and not alone:
        raise SimudyError(
            f"{adjoint} differentiates the last iterate alone, no average or buffers: use "
            "Recompute()"
        )
    return _asked(published, (state, return_state), (moved, step.move), (seen, observe))


@torch.compiler.disable(
    reason="torch.compile cannot follow a derivative of a derivative: a simulated run stays as it "
    "is, so leave fullgraph=True out"
)
def _uncompiled(*run: Any, **options: Any) -> Any:
    whole: Any = simulate
    return whole(*run, **options)


@dataclass(frozen=True)
class TrainingStep:
    """From θ_t, state_t and buffers to those after the step, and what is observed of it."""

    loss: Callable[[Params, Any], Any]
    grads: Callable[[Params, Any], Params]
    observe: Observe | None
    move: Callable[[Params, Any, Params], Params] | None = None

    def __call__(self, carry: Any, x: tuple[int, Any, Rule]) -> tuple[Any, Any]:
        (params, (state, buffers)), (t, batch, rule) = carry, x
        if self.move is not None:
            buffers = self.move(params, batch, buffers)
        after, state = advance(rule, self.grads, batch, state, params)
        seen = self.observe and self.observe(t, after, self.loss(params, batch))
        return (after, (state, buffers)), seen


def _mover(loss: Any, buffers: Params) -> Callable[[Params, Any, Params], Params]:
    """How the buffers of a loss move."""
    owner: Any = getattr(loss, "__self__", None)
    if (move := getattr(owner, "moved_buffers", None)) is None:
        raise SimudyError(
            "buffers are those of a StatelessModel, and this loss is none's: give its model.loss, "
            "or leave buffers out"
        )
    owner.check_buffers(buffers)
    return move


def _require_kinds(optimizer: Any, adjoint: Any, gradient: Any) -> None:
    for name, value, kind in (("adjoint", adjoint, Adjoint), ("gradient", gradient, Gradient)):
        if not isinstance(value, kind):
            raise SimudyError(
                f"{name}={value!r} is no {kind.__name__.lower()}: give an object such as "
                + ("Direct() or Recompute(every=2)" if kind is Adjoint else "Reverse() or Mixed()")
            )
    if isinstance(optimizer, torch.optim.Optimizer):
        raise SimudyError(
            f"the optimizer is torch's {type(optimizer).__name__}, which steps in place: give "
            "from_torch(optimizer, module)"
        )
    if not isinstance(optimizer, (Rule, Iterable)):
        raise SimudyError(f"{optimizer!r} is no rule: give one such as SGD(lr=0.1), or one a step")


def _listed(batches: Iterable[Any], steps: int | None) -> Sequence[Any]:
    """The batches of all steps."""
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise SimudyError(f"batches are a {type(batches).__name__}: give a list, one for each step")
    if steps is None:
        if hasattr(batches, "__getitem__"):
            return batches  # type: ignore[return-value]
        raise SimudyError(
            f"batches are a {type(batches).__name__}, whose length is not that of the run: say how "
            "many steps to take, steps=…"
        )
    if not isinstance(steps, Integral) or steps < 0:
        raise SimudyError(f"steps={steps}: give a whole number, 0 or more")
    taken: list[Any] = []
    while len(taken) < steps:
        before = len(taken)
        taken += islice(batches, steps - before)
        if len(taken) == before:
            raise SimudyError(
                f"batches gave {before} of steps={steps} and then no more: give what can be gone "
                "through again (a list, a DataLoader), or fewer steps"
            )
    return taken


def _asked(params: Params, *more: tuple[Any, Any]) -> Params | tuple[Any, ...]:
    """``params``, and of ``more`` what was asked for."""
    wanted = [value for value, asked in more if asked]
    return (params, *wanted) if wanted else params


def _one_per_step(optimizer: Rule | Sequence[Rule], steps: int) -> list[Rule]:
    rules = [optimizer] * steps if isinstance(optimizer, Rule) else list(optimizer)
    for rule in rules:
        if not isinstance(rule, Rule):
            raise SimudyError(f"{rule!r} is no rule: give one such as SGD(lr=0.1) for each step")
    if len(rules) != steps:
        raise SimudyError(f"{len(rules)} rules for {steps} batches: give one rule, or one per step")
    return rules


def _refuse_complex(params: Params, rules: Sequence[Rule]) -> None:
    if any(p.is_complex() for p in params.values()):
        for rule in rules:
            if not rule.spans_gradients:
                raise SimudyError(
                    f"{type(rule).__name__} acts on single numbers, and a parameter is complex: "
                    "train torch.view_as_real of it, as torch.optim does, or use SGD"
                )
