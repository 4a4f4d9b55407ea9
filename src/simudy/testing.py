"""Does a rule differentiate exactly? ``check_optimizer`` answers for any rule, yours included.

It runs short simulations in float64 on a tiny perceptron and a tiny convolutional network with a
frozen BatchNorm, and raises an ``AssertionError`` that names what disagrees.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simudy.dynamics import tree
from simudy.dynamics.adjoint import Direct, Recompute
from simudy.dynamics.gradient import Gradient, Mixed, Reverse
from simudy.dynamics.model import StatelessModel
from simudy.dynamics.optim.hyperparameters import hyperparameters, with_hyperparameters
from simudy.dynamics.optim.rule import Rule, Scalar
from simudy.dynamics.simulate import simulate
from simudy.dynamics.tree import Params

Inputs = dict[str, list[Tensor]]  # what a run is differentiated by, each input a list of tensors
Mode = tuple[Direct | Recompute, Gradient]

MODES: tuple[Mode, ...] = (
    (Direct(), Reverse()),
    (Direct(), Mixed()),
    (Recompute(every=2), Reverse()),
    (Recompute(every=2), Mixed()),
)


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
        _check_zero_gradients(rule, _dead(), chosen)
    if vmap:
        _check_vmap(rule, problems(steps)[0], chosen)
    if rule.spans_gradients:
        _check_span(rule, problems()[0].model.params)


@dataclass
class Problem:
    """A tiny training run: a network, batches ``(images, soft labels, sample weights)``, and a view
    of the result.
    """

    name: str
    module: nn.Module
    batches: list[tuple[Tensor, Tensor, Tensor]]

    def __post_init__(self) -> None:
        self.model = StatelessModel(self.module)
        self.view = tree.map(
            lambda p: torch.cos(torch.arange(p.numel()) + 1.0).view_as(p).to(p), self.model.params
        )

    def inputs(self) -> Inputs:
        """The data and θ0, as lists of tensors."""
        images, labels, weights = (list(column) for column in zip(*self.batches, strict=True))
        return {
            "images": images,
            "labels": labels,
            "sample weights": weights,
            "θ0": list(self.model.params.values()),
        }

    def run(self, rule: Rule, inputs: Inputs, mode: Mode = MODES[0]) -> Params:
        """Final parameters; entries of ``inputs`` that are no data are fields of the rule."""
        given = {**self.inputs(), **inputs}
        params = dict(zip(self.model.params, given.pop("θ0"), strict=True))
        batches = list(
            zip(given.pop("images"), given.pop("labels"), given.pop("sample weights"), strict=True)
        )
        rule = with_hyperparameters(rule, {path: value for path, (value,) in given.items()})
        return simulate(self.model.loss, params, batches, rule, adjoint=mode[0], gradient=mode[1])

    def outcome(self, rule: Rule, inputs: Inputs, mode: Mode = MODES[0]) -> Tensor:
        """One number that every final parameter has a share in."""
        return tree.dot(self.view, self.run(rule, inputs, mode))


def problems(steps: int = 3) -> list[Problem]:
    """The networks rules are checked on: smooth, float64, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mlp = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        norm = nn.BatchNorm2d(2)
        norm.running_mean, norm.running_var = torch.randn(2), torch.rand(2) + 0.5
        conv = (
            nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.Softplus(), nn.Flatten(), nn.Linear(8, 3))
            .double()
            .eval()
        )
        return [
            Problem("perceptron", mlp, [_batch(4) for _ in range(steps)]),
            Problem("convolutional network", conv, [_batch(1, 4, 4) for _ in range(steps)]),
        ]


def directional(
    fn: Callable[[list[Tensor]], Tensor],
    at: Sequence[Tensor],
    along: Sequence[Tensor],
    *,
    step: float,
) -> float:
    """Derivative of ``fn`` along a direction by central differences of fourth order.

    Args:
        fn: ``(tensors) -> scalar``.
        at: the point, in float64.
        along: the direction, shaped alike.
        step: length of a difference, over that of ``along``.
    """

    def slope(h: float) -> Tensor:
        ahead, behind = ([x + s * h * d for x, d in zip(at, along, strict=True)] for s in (1, -1))
        return (fn(ahead) - fn(behind)) / (2 * h)

    with torch.no_grad():
        return float((4 * slope(step / 2) - slope(step)) / 3)


def _batch(*shape: int, n: int = 3, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.randn(n, classes, dtype=torch.float64).softmax(1)
    return (
        torch.randn(n, *shape, dtype=torch.float64),
        labels,
        torch.rand(n, dtype=torch.float64) + 0.5,
    )


def _dead() -> Problem:
    """A perceptron with a dead unit, and a first batch of weight zero: some gradients vanish, then
    all do.
    """
    problem = problems()[0]
    first, _, last = problem.module.children()
    with torch.no_grad():
        next(bias for name, bias in first.named_parameters() if name == "bias")[0] = -100.0
    (images, labels, weights), *others = problem.batches
    module = nn.Sequential(first, nn.ReLU(), last)
    return Problem(
        "perceptron with a dead unit",
        module,
        [*others, (images, labels, torch.zeros_like(weights))],
    )


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
