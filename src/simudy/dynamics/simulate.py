"""The training run as a pure function: the whole algorithm on one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simudy.dynamics.adjoint import Adjoint, Direct
from simudy.dynamics.gradient import Gradient, Loss, Reverse
from simudy.dynamics.loss import ExactLoss, check_same, draws_refused
from simudy.dynamics.optim.rule import Rule, advance
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


def simulate(
    loss: Loss,
    params: Params,
    batches: Sequence[Any],
    optimizer: Rule | Sequence[Rule],
    *,
    adjoint: Adjoint = Direct(),  # noqa: B008 (frozen)
    gradient: Gradient = Reverse(),  # noqa: B008 (frozen)
) -> Params:
    """Train from ``params`` on ``batches``, one step each, and return the final parameters,
    differentiably.

    θ_{t+1} = update_t(∇ℓ(θ_t, batch_t), state_t, θ_t). The result is differentiable with respect to
    ``params``, every floating tensor in ``batches`` and every tensor field of ``optimizer``,
    exactly, whatever the adjoint and the gradient mode.

    Args:
        loss: ``(params, batch) -> scalar``, e.g. ``StatelessModel(module).loss``.
        params: initial parameters θ0, never mutated.
        batches: one entry per step, e.g. ``(images, labels)``; the loss alone looks inside.
        optimizer: one rule for all steps, or one per step (a schedule); the state is handed from
            one to the next.
        adjoint: how the fold is differentiated (memory against time).
        gradient: how ∇ℓ is computed and differentiated.

    Raises:
        SimudyError: the number of rules differs from the number of batches; the loss draws random
            numbers, or is otherwise another at its next call.

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
    rules = _one_per_step(optimizer, len(batches))
    if not rules:
        return params
    _refuse_complex(params, rules)
    exact = ExactLoss(loss)
    check_same(exact, params, batches[0])
    held, grads = gradient.bind(exact, params, batches, rules)

    def step(carry: tuple[Params, Any], x: tuple[Any, Rule]) -> tuple[Params, Any]:
        (params, state), (batch, rule) = carry, x
        return advance(rule, lambda at: grads(at, batch), state, params)

    with draws_refused(exact, params, batches):
        start = held, rules[0].init(held)
        end, state = adjoint.fold(step, start, list(zip(batches, rules, strict=True)))
    return rules[-1].final(end, state)


def _one_per_step(optimizer: Rule | Sequence[Rule], steps: int) -> list[Rule]:
    rules = [optimizer] * steps if isinstance(optimizer, Rule) else list(optimizer)
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
