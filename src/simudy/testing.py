"""Does a rule differentiate exactly? ``check_optimizer`` answers for any rule, yours included.

It runs short simulations in float64 on a tiny perceptron and a tiny convolutional network with a
frozen BatchNorm, and raises an ``AssertionError`` that names what disagrees.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simudy.dynamics import tree
from simudy.dynamics.optim.hyperparameters import hyperparameters
from simudy.dynamics.optim.rule import Rule, Scalar
from simudy.dynamics.simulate import simulate
from simudy.dynamics.small_runs import MODES, Inputs, Mode, Problem, dead, directional, problems
from simudy.dynamics.tree import Params

__all__ = ["MODES", "Problem", "check_optimizer", "directional", "problems"]


def check_optimizer(
    rule: Rule,
    *,
    reference: Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer] | None = None,
    fields: Collection[str] | None = None,
    zero_gradients: bool = True,
    vmap: bool = True,
    steps: int = 3,
    rtol: float = 1e-6,
) -> None:
    """Assert that a simulation with ``rule`` is exact and pure.

    Checked: hyper-gradients with respect to images, soft labels, sample weights, θ0 and every float
    field of the rule (and of the rules inside), against finite differences under each adjoint and
    gradient mode; a second run of the same object gives the same numbers; finite hyper-gradients
    where gradients are exactly zero; ``torch.func.vmap`` over dummies and over a grid of
    hyper-parameters; that a rule which claims ``spans_gradients`` does so.

    Args:
        rule: the rule to check. A float field at 0, or too small for finite differences, is checked
            switched on.
        reference: makes the torch optimizer of a list of named parameters. It must agree over 10
            steps to 1e-12.
        fields: names of the float fields to check. Default: all.
        zero_gradients, vmap: whether to check these two.
        steps: length of the runs, enough for every term of the rule to take part.
        rtol: tolerance of the finite differences.

    Raises:
        AssertionError: what disagrees, where and by how much.

    Example:
        >>> from simudy.dynamics.optim import SGD
        >>> check_optimizer(SGD(lr=0.1), reference=lambda params: torch.optim.SGD(params, lr=0.1))
    """
    chosen = {
        path: v
        for path, v in hyperparameters(rule).items()
        if fields is None or path.split("/")[-1] in fields
    }
    for problem in problems(steps):
        if reference is not None:
            _check_reference(rule, problem, reference)
        _check_derivatives(rule, problem, problem.inputs(), step=lambda _: 1e-5, rtol=rtol)
        _check_derivatives(rule, problem, _as_inputs(chosen), step=_room, rtol=rtol)
        _check_reuse(rule, problem)
    if zero_gradients:
        _check_zero_gradients(rule, dead(), chosen)
    if vmap:
        _check_vmap(rule, problems(steps)[0], chosen)
    if rule.spans_gradients:
        _check_span(rule, problems()[0].model.params)


def _check_reference(
    rule: Rule, problem: Problem, reference: Callable[..., torch.optim.Optimizer]
) -> None:
    batches = [problem.batches[t % len(problem.batches)] for t in range(10)]
    end = simulate(problem.model.loss, problem.model.params, batches, rule)
    module = copy.deepcopy(problem.module)
    with _default_float64():
        optimizer = reference(list(module.named_parameters()))
        for images, labels, weights in batches:
            optimizer.zero_grad()
            (F.cross_entropy(module(images), labels, reduction="none") * weights).mean().backward()
            optimizer.step()
    for name, theirs in module.named_parameters():
        error = float((end[name] - theirs).detach().abs().max())
        assert error <= 1e-12, (
            f"{rule}: {name} is {error:.1e} off {type(optimizer).__name__} ({problem.name})"
        )


@contextmanager
def _default_float64() -> Iterator[None]:
    # torch.optim keeps some of its scalars (NAdam's product of momenta) in the default dtype
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _check_derivatives(
    rule: Rule, problem: Problem, inputs: Inputs, *, step: Callable[[Tensor], float], rtol: float
) -> None:
    along = {name: [_direction(leaf) for leaf in leaves] for name, leaves in inputs.items()}
    exact = {mode: _derivatives(rule, problem, inputs, along, mode) for mode in MODES}
    for name, leaves in inputs.items():

        def outcome(moved: list[Tensor], name: str = name) -> Tensor:
            return problem.outcome(rule, {**inputs, name: moved})

        for shorter in (1, 0.1, 0.01):  # where a long step crosses a kink, a shorter one may not
            h = shorter * step(leaves[0])
            expected = directional(outcome, leaves, along=along[name], step=h)
            margin = rtol * abs(expected) + 1e-14 * (1 + abs(float(outcome(leaves)))) / h
            wrong = [
                (mode, by[name])
                for mode, by in exact.items()
                if not abs(by[name] - expected) <= margin
            ]
            if not wrong:
                break
        else:
            (adjoint, gradient), value = wrong[0]
            raise AssertionError(
                f"{rule}: the derivative by {name} is {value:.10g}, finite differences give "
                f"{expected:.10g} "
                f"({problem.name}, {adjoint}, {type(gradient).__name__})"
            )


def _derivatives(
    rule: Rule, problem: Problem, inputs: Inputs, along: Inputs, mode: Mode
) -> dict[str, float]:
    grads = _hypergradients(rule, problem, inputs, mode)
    return {
        name: sum(float((g * d).sum()) for g, d in zip(grads[name], along[name], strict=True))
        for name in inputs
    }


def _hypergradients(rule: Rule, problem: Problem, inputs: Inputs, mode: Mode) -> Inputs:
    learned = {
        name: [leaf.clone().requires_grad_() for leaf in leaves] for name, leaves in inputs.items()
    }
    flat = [leaf for leaves in learned.values() for leaf in leaves]
    outcome = problem.outcome(rule, learned, mode)
    if not outcome.requires_grad:  # a rule without a float field
        return {
            name: [torch.zeros_like(leaf) for leaf in leaves] for name, leaves in inputs.items()
        }
    grads = iter(torch.autograd.grad(outcome, flat, allow_unused=True, materialize_grads=True))
    return {name: [next(grads) for _ in leaves] for name, leaves in learned.items()}


def _check_reuse(rule: Rule, problem: Problem) -> None:
    before = tree.map(Tensor.clone, problem.model.params)
    first, second = (_hypergradients(rule, problem, problem.inputs(), MODES[0]) for _ in range(2))
    same = all(
        torch.equal(a, b) for name in first for a, b in zip(first[name], second[name], strict=True)
    )
    assert same, f"{rule} gives another answer when used again: it keeps hidden state"
    untouched = all(torch.equal(before[name], p) for name, p in problem.model.params.items())
    assert untouched, f"{rule} writes to the parameters it is given: work out of place"


def _check_zero_gradients(rule: Rule, problem: Problem, chosen: dict[str, Scalar]) -> None:
    inputs = {**problem.inputs(), **{path: [_tensor(value)] for path, value in chosen.items()}}
    for adjoint, gradient in (MODES[0], MODES[-1]):
        for name, grads in _hypergradients(rule, problem, inputs, (adjoint, gradient)).items():
            finite = all(bool(g.isfinite().all()) for g in grads)
            assert finite, (
                f"{rule}: the hyper-gradient by {name} is not finite where gradients are exactly "
                "zero"
            )


def _check_vmap(rule: Rule, problem: Problem, chosen: dict[str, Scalar]) -> None:
    for inputs in ({"images": problem.inputs()["images"]}, _as_inputs(chosen)):
        grid = {
            name: [torch.stack((leaf, 0.9 * leaf)) for leaf in leaves]
            for name, leaves in inputs.items()
        }
        for mode in (MODES[0], MODES[-1]):

            def hypergradients(point: Inputs, mode: Mode = mode) -> Inputs:
                return torch.func.grad(lambda at: problem.outcome(rule, at, mode))(point)

            together = torch.func.vmap(hypergradients)(grid) if inputs else {}
            for i in range(2):
                alone = hypergradients(
                    {name: [leaf[i] for leaf in leaves] for name, leaves in grid.items()}
                )
                for name in inputs:
                    for a, b in zip(together[name], alone[name], strict=True):
                        assert torch.allclose(a[i], b, rtol=1e-7, atol=1e-12), (
                            f"{rule}: the hyper-gradient by {name} differs under vmap "
                            f"({type(mode[1]).__name__})"
                        )


def _check_span(rule: Rule, start: Params) -> None:
    """θ_T of a run on arbitrary gradients must lie in the span of θ0 and these gradients, tensor by
    tensor.
    """
    params, state, met = start, rule.init(start), [start]
    for t in range(4):
        met.append({name: _direction(p, t) for name, p in params.items()})
        params, state = rule.update(met[-1], state, params)
    for name, end in rule.final(params, state).items():
        basis = torch.stack([entry[name].reshape(-1) for entry in met], dim=1)
        rest = (
            end.reshape(-1)
            - basis @ torch.linalg.lstsq(basis, end.reshape(-1), driver="gelsd").solution
        )
        assert rest.norm() <= 1e-10 * end.norm(), (
            f"{rule} claims spans_gradients, but leaves the span of its gradients"
        )


def _as_inputs(fields: dict[str, Scalar]) -> Inputs:
    """Fields as tensors, at values where derivatives can be measured: a term that is off or tiny is
    switched on.
    """
    seen = {p: v if abs(float(v)) > 1e-6 else 0.1 if v == 0 else 1e-3 for p, v in fields.items()}
    return {path: [_tensor(value)] for path, value in seen.items()}


def _room(field: Tensor) -> float:
    """How far a field may move: a decay of 0.999 has little room below 1."""
    value = float(field)
    return 1e-3 * min(abs(value), abs(1 - value) or 1.0, 1.0)


def _tensor(value: Scalar) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach().clone()


def _direction(leaf: Tensor, shift: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(leaf.numel() + 1000 * shift)
    return torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
