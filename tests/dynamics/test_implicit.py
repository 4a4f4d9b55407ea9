"""``Implicit``: where a run converges to, differentiated without the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torchopt.diff.implicit import custom_root
from torchopt.linear_solve import solve_cg
from unrolled import view

from simudy import (
    SGD,
    Adam,
    Clipped,
    Direct,
    Factored,
    Implicit,
    Mixed,
    Recompute,
    Reverse,
    SimudyError,
    StatelessModel,
    Traced,
    Truncated,
    simulate,
)
from simudy.dynamics import tree
from simudy.dynamics.optim import Accumulated, AdamW, Averaged, Groups
from simudy.testing import directional

pytestmark = pytest.mark.usefixtures("float64")

EXACT: dict = {"tolerance": 1e-12, "stationary": 1e-9}
SOLVERS = "cg", "neumann", "gmres"
GRADIENTS = Reverse(), Mixed(), Traced(), Factored(layers="all"), Factored(Mixed(), "all")


def network() -> StatelessModel:
    """Logistic regression with two layers, of which the first is to be frozen."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return StatelessModel(net)


LABELS = torch.arange(12) % 3


def convex(params: tree.Params, batch: Any) -> Tensor:
    """Strongly convex and no quadratic, by weights and bias; ``batch`` has images and decays."""
    images, decays = batch
    logits = nn.functional.linear(images, params["w"], params["b"])
    penalty = torch.stack([d * p.square().sum() for d, p in zip(decays, params.values())])  # noqa: B905
    return nn.functional.cross_entropy(logits, LABELS) + penalty.sum()


def problem() -> tuple[tree.Params, Tensor, Tensor]:
    return (
        {"w": torch.randn(3, 4), "b": torch.randn(3)},
        torch.randn(12, 4),
        torch.tensor([0.5, 0.4]),
    )


def outcome(at: list[Tensor], params: tree.Params, steps: int = 60, **ways: Any) -> Tensor:
    ways = {"optimizer": SGD(0.5, 0.2), **ways}
    return view(simulate(convex, params, [tuple(at)] * steps, **ways))


def gradients(of: Any, at: list[Tensor]) -> list[Tensor]:
    wanted = [x.clone().requires_grad_() for x in at]
    return list(torch.autograd.grad(of(wanted), wanted))


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-9) -> None:
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).norm()) <= tolerance * float(b.norm())


@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_it_is_the_derivative_of_a_long_run(solver, gradient):
    params, *at = problem()
    adjoint = Implicit(solver, **EXACT)
    found = gradients(lambda at: outcome(at, params, adjoint=adjoint, gradient=gradient), at)
    assert_close(found, gradients(lambda at: outcome(at, params), at))


def test_it_is_what_finite_differences_find():
    params, *at = problem()
    found = gradients(lambda at: outcome(at, params, adjoint=Implicit(**EXACT)), at)
    slope = sum(float((g * v).sum()) for g, v in zip(found, at, strict=True))
    expected = directional(lambda at: outcome(at, params), at, at, step=1e-3)
    assert slope == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    "rule, steps",
    [
        (Adam(0.5, 0.5, 0.9, eps=1.0), 120),
        (Clipped(SGD(0.5), max_norm=0.3), 120),
        (Accumulated(SGD(0.5), every=2), 120),
        ([SGD(0.3)] * 40 + [SGD(0.5)] * 40, 80),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_rule_went_there(rule, steps):
    params, *at = problem()
    expected = gradients(lambda at: outcome(at, params), at)
    ways = {"optimizer": rule, "adjoint": Implicit(**EXACT)}
    assert_close(gradients(lambda at: outcome(at, params, steps, **ways), at), expected, 1e-7)
    end = outcome(at, params, steps, optimizer=rule)
    assert torch.equal(end, outcome(at, params, steps, **ways))


@pytest.mark.filterwarnings("ignore:We've integrated functorch")  # which torchopt calls
@pytest.mark.parametrize("solver", SOLVERS)
def test_it_is_what_torchopt_finds(solver):
    params, images, decays = problem()
    names, start = list(params), tuple(params.values())

    def named(values: Sequence[Tensor]) -> tree.Params:
        return dict(zip(names, values, strict=True))

    def optimality(values: Any, images: Tensor, decays: Tensor) -> Any:
        return tuple(torch.func.grad(convex)(named(values), (images, decays)).values())

    @custom_root(
        optimality,
        argnums=(1, 2),
        solve=solve_cg(maxiter=200, rtol=1e-13, atol=1e-13),
    )
    def solve(start: Any, images: Tensor, decays: Tensor) -> tuple[Tensor, ...]:
        batch = images.detach(), decays.detach()
        end = simulate(convex, named(start), [batch] * 60, SGD(0.5, 0.2))
        return tuple(tree.detach(end).values())

    at = [images, decays]
    theirs = gradients(lambda at: view(named(cast(Any, solve(start, *at)))), at)
    ours = gradients(lambda at: outcome(at, params, adjoint=Implicit(solver, **EXACT)), at)
    assert_close(ours, theirs, 1e-8)


def ridge(params: tree.Params, batch: Any) -> Tensor:
    x, y, decay = batch
    return (x @ params["w"] - y).square().mean() / 2 + decay / 2 * params["w"].square().sum()


def closed_form(x: Tensor, y: Tensor, decay: Tensor) -> Tensor:
    return torch.linalg.solve(x.mT @ x / len(x) + decay * torch.eye(x.shape[1]), x.mT @ y / len(x))


def test_derivatives_of_every_order_are_those_of_the_closed_form():
    x, y, decay = torch.randn(9, 3), torch.randn(9), torch.tensor(0.5)

    def ours(decay: Tensor, x: Tensor = x) -> Tensor:
        ways: dict = {"adjoint": Implicit(**EXACT)}
        end = simulate(ridge, {"w": torch.zeros(3)}, [(x, y, decay)] * 300, SGD(0.5), **ways)
        return end["w"].sin().sum()

    def theirs(decay: Tensor, x: Tensor = x) -> Tensor:
        return closed_form(x, y, decay).sin().sum()

    for order in (1, 2, 3):
        found, expected = ours, theirs
        for _ in range(order):
            found, expected = torch.func.grad(found), torch.func.grad(expected)
        torch.testing.assert_close(found(decay), expected(decay), rtol=1e-8, atol=0)
    mixed = torch.func.jacrev(torch.func.grad(ours, argnums=1), chunk_size=1)(decay, x)
    expected = torch.func.jacrev(torch.func.grad(theirs, argnums=1))(decay, x)
    torch.testing.assert_close(mixed, expected, rtol=1e-8, atol=1e-12)
    leaf = decay.clone().requires_grad_()
    (slope,) = torch.autograd.grad(ours(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(slope, leaf)
    torch.testing.assert_close(second, torch.func.grad(torch.func.grad(theirs))(decay))


@pytest.mark.parametrize("gradient", [Reverse(), Mixed(), Factored(layers="all")], ids=str)
def test_what_does_not_train_is_part_of_the_problem(gradient):
    """Frozen by the rule, or by the loss: the last layer's optimum as a function of the first."""
    model, images = network(), torch.randn(12, 4)
    start = {**model.params, "unused": torch.randn(2)}
    names = ["0.weight", "0.bias", "unused"]
    rule = Groups({"0.*": None, "unused": SGD(0.5), "*": SGD(0.5, 0.2)})

    def loss(params: tree.Params, batch: Any) -> Tensor:
        decay = sum(0.4 * params[k].square().sum() for k in ("2.weight", "2.bias"))
        return model.loss({k: params[k] for k in model.params}, (batch[0], LABELS)) + decay

    def of(at: list[Tensor], adjoint: Any) -> Tensor:
        params = {**start, **dict(zip(names, at[1:], strict=True))}
        data, ways = [(at[0],)] * 80, {"adjoint": adjoint, "gradient": gradient}
        return view(simulate(loss, params, data, rule, **ways))

    at = [images, *(start[name] for name in names)]
    assert_close(
        gradients(lambda at: of(at, Implicit(**EXACT)), at),
        gradients(lambda at: of(at, Direct()), at),
    )


def saddle(params: tree.Params, batch: Any) -> Tensor:
    v, w = params["w"]
    return v**2 - w**2 / 2 + v * w.sin() + batch[0] * (v + 3 * w)


def test_a_saddle_is_for_gmres():
    start = {"w": torch.zeros(2)}
    b = torch.tensor(0.0, requires_grad=True)

    def end(solver: Any) -> Tensor:
        return simulate(saddle, start, [(b,)], SGD(0.1), adjoint=Implicit(solver))["w"]

    found = torch.stack([torch.autograd.grad(end("gmres")[i], b)[0] for i in range(2)])
    hessian = torch.tensor([[2.0, 1.0], [1.0, -1.0]])
    torch.testing.assert_close(found, -torch.linalg.solve(hessian, torch.tensor([1.0, 3.0])))
    with pytest.raises(SimudyError, match=r"cg has not converged.*solver='gmres'"):
        end("cg")[1].backward()
    with pytest.raises(SimudyError, match="neumann has not converged"):
        end("neumann")[1].backward()


def test_the_end_of_a_run_alone_and_in_the_last_steps_alone():
    params, *at = problem()
    ways: dict = {"adjoint": Truncated(2, Implicit(**EXACT))}
    expected = gradients(lambda at: outcome(at, params, adjoint=Implicit(**EXACT)), at)
    assert_close(gradients(lambda at: outcome(at, params, **ways), at), expected)
    end, state = simulate(
        convex, params, [tuple(at)] * 60, SGD(0.5, 0.2), return_state=True, **ways
    )
    after = simulate(convex, end, [tuple(at)], SGD(0.5, 0.2), state=state, **ways)
    torch.testing.assert_close(after, end, rtol=0, atol=1e-9)


def held(value: float) -> Tensor:
    return torch.tensor(value, requires_grad=True)


REFUSED: list[Any] = [
    ({"steps": 5}, "has not converged: its last gradient has norm"),
    ({"optimizer": SGD(0.5, 0.2, weight_decay=0.1)}, "put a weight decay into the loss"),
    ({"optimizer": AdamW(0.1, weight_decay=0.1), "steps": 300}, "put a weight decay into the loss"),
    ({"optimizer": SGD(held(0.5))}, r"detach\(\) the rule's numbers"),
    ({"optimizer": SGD(1.0, weight_decay=held(0.0))}, r"detach\(\) the rule's numbers"),
    ({"optimizer": Averaged(SGD(0.5, 0.2))}, "no average"),
    ({"observe": lambda t, params, loss: loss}, "leave observe out"),
    ({"adjoint": Implicit(iterations=2)}, "cg has not converged: a residual of"),
    ({"adjoint": Implicit("neumann", iterations=2)}, "neumann has not converged: a residual of"),
    ({"adjoint": Implicit("gmres", iterations=2)}, "gmres has not converged: a residual of"),
]


@pytest.mark.parametrize("ways, message", REFUSED)
def test_it_is_never_silently_wrong(ways, message):
    params, *at = problem()
    with pytest.raises(SimudyError, match=message):
        gradients(lambda at: outcome(at, params, **{"adjoint": Implicit(), **ways}), at)


@pytest.mark.parametrize("steps", [3, 40, 400])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("solver", ["cg", "gmres"])
def test_a_run_that_is_far_from_its_end_is_refused_whatever_the_scale_of_the_loss(
    solver, scale, steps
):
    """A small loss has a small gradient anywhere, and a flat one far from its end."""
    x, y, decay = torch.randn(9, 3) * torch.tensor([1.0, 0.5, 0.1]), torch.randn(9), held(0.05)

    def loss(params: tree.Params, batch: Any) -> Tensor:
        return scale * ridge(params, batch)

    def slope() -> Tensor:
        ways: dict = {"adjoint": Implicit(solver)}
        data = [(x, y, decay)] * steps
        end = simulate(loss, {"w": torch.zeros(3)}, data, SGD(0.5 / scale), **ways)
        return torch.autograd.grad(end["w"].sum(), decay)[0]

    if steps < 400:
        with pytest.raises(SimudyError, match="the run has not converged"):
            slope()
    else:
        (expected,) = torch.autograd.grad(closed_form(x, y, decay).sum(), decay)
        torch.testing.assert_close(slope(), expected, rtol=1e-3, atol=0)


def test_batches_that_differ_and_transforms_that_it_cannot_follow_are_refused():
    params, images, decays = problem()
    ways: dict = {"adjoint": Implicit()}
    with pytest.raises(SimudyError, match="these batches differ"):
        simulate(convex, params, [(images, decays), (images + 1, decays)], SGD(1.0), **ways)

    def of(images: Tensor) -> Tensor:
        return simulate(convex, params, [(images, decays)] * 60, SGD(0.5, 0.2), **ways)["b"]

    with pytest.raises(SimudyError, match="no forward mode"):
        torch.func.jvp(of, (images,), (images,))
    with pytest.raises(SimudyError, match="which vmap does not allow"):
        torch.func.vmap(of)(images[None])
    with pytest.raises(SimudyError, match=r"chunk_size=1"):
        torch.func.jacrev(of)(images)
    with pytest.raises(SimudyError, match="real parameters"):
        complex = {"w": torch.zeros(2, dtype=torch.complex128)}
        simulate(lambda p, b: p["w"].abs().square().sum(), complex, [()], SGD(0.1), **ways)
    with pytest.raises(SimudyError, match="choose cg, neumann, gmres"):
        Implicit("newton")  # type: ignore[arg-type]
    hidden = torch.ones(4, requires_grad=True)
    with pytest.raises(SimudyError, match="its gradient would be lost"):
        simulate(
            lambda p, b: (p["w"] - hidden).square().sum(),
            {"w": hidden.detach()},
            [()],
            SGD(),
            **ways,
        )


def test_the_planner_is_told_its_memory_and_never_takes_it():
    few, many = (Implicit().kept(steps, per_step=7, params=3) for steps in (2, 2000))
    assert few == many == 19
    assert Implicit("gmres", iterations=50).kept(1, per_step=7, params=3) == 157
    assert Implicit().leaner(100) is None
    assert isinstance(Direct().leaner(100), Recompute)
