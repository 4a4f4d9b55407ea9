"""Forward derivatives, mixed orders and complex parameters, through every mode and adjoint."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from simudy import (
    SGD,
    Adam,
    Clipped,
    Direct,
    Factored,
    Mixed,
    Recompute,
    Reverse,
    SimudyError,
    StatelessModel,
    simulate,
)
from simudy.dynamics import tree
from simudy.dynamics.gradient import Traced
from simudy.testing import directional

LABELS = torch.tensor([0, 1, 2])
MODES = list(
    itertools.product(
        (Direct(), Recompute(2)),
        (Reverse(), Mixed(), Traced(), Factored(layers="all"), Factored(Mixed(), layers="all")),
    )
)


def problem():
    net = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()
    model = StatelessModel(net)
    x, v = torch.randn(2, 3, 4, dtype=torch.float64)

    def outcome(x: Tensor, mode) -> Tensor:
        batches, rule = [(x, LABELS)] * 3, SGD(lr=0.3, momentum=0.5)
        end = simulate(model.loss, model.params, batches, rule, adjoint=mode[0], gradient=mode[1])
        return tree.dot(
            end, tree.map(lambda p: torch.cos(torch.arange(p.numel())).view_as(p).to(p), end)
        )

    return outcome, x, v


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_first_derivatives_in_every_way(mode):
    outcome, x, v = problem()
    expected = pytest.approx(
        directional(lambda at: outcome(at[0], MODES[0]), [x], [v], step=1e-5), rel=1e-6
    )

    def of(x):
        return outcome(x, mode)

    def dual():
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(of(forward_ad.make_dual(x, v))).tangent
            assert tangent is not None
            return tangent

    assert float(torch.func.jvp(of, (x,), (v,))[1]) == expected
    assert float(dual()) == expected
    assert float((torch.func.jacrev(of)(x) * v).sum()) == expected
    assert float((torch.func.jacfwd(of)(x) * v).sum()) == expected
    several = torch.func.jacrev(lambda x: torch.stack([of(x), of(2 * x)]))(x)
    assert float((several[0] * v).sum()) == expected
    together = torch.func.vmap(lambda x: torch.func.jvp(of, (x,), (v,))[1])(torch.stack([x, x + 1]))
    assert float(together[0]) == expected


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_second_derivatives_in_every_way(mode):
    outcome, x, v = problem()

    def slope(h: float) -> float:
        grad = torch.func.grad(lambda x: outcome(x, MODES[0]))(x + h * v)
        return float((grad * v).sum())

    h = 1e-4
    expected = (8 * (slope(h) - slope(-h)) - (slope(2 * h) - slope(-2 * h))) / (12 * h)

    def of(x):
        return outcome(x, mode)

    def along(x):
        return torch.func.jvp(of, (x,), (v,))[1]

    hessians = [
        torch.func.hessian(of)(x),
        torch.func.jacrev(torch.func.jacrev(of))(x),
        torch.autograd.functional.hessian(of, x),
    ]
    found = [float(torch.einsum("ij,ijkl,kl->", v, hessian, v)) for hessian in hessians]
    found += [float((torch.func.grad(along)(x) * v).sum())]
    found += [float((torch.func.jvp(torch.func.grad(of), (x,), (v,))[1] * v).sum())]
    assert found == [pytest.approx(expected, rel=1e-6)] * len(found)


def test_mixed_says_which_mode_works_where_torch_has_no_forward_derivative():
    def loss(params, batch):
        grid = torch.tanh(params["w"]).view(1, 2, 2, 2)
        return nn.functional.grid_sample(batch[0], grid, align_corners=False).square().sum()

    params = {"w": torch.randn(8, dtype=torch.float64)}
    x = torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    end = simulate(loss, params, [(x,)], SGD(lr=0.1), gradient=Mixed())
    with pytest.raises(SimudyError, match=r"gradient=Reverse\(\)"):
        end["w"].sum().backward()
    simulate(loss, params, [(x,)], SGD(lr=0.1), gradient=Reverse())["w"].sum().backward()


def complex_loss(params, batch):
    return (batch[0] @ params["w"]).abs().square().cos().sum() + params["w"].abs().pow(3).sum()


@pytest.mark.parametrize("rule", [SGD(lr=0.1, momentum=0.5), Clipped(SGD(lr=0.1), max_norm=0.5)])
@pytest.mark.parametrize("mode", MODES[:8], ids=str)
def test_complex_parameters_train_as_in_torch_with_exact_derivatives(rule, mode):
    leaves = [torch.randn(2, 3, dtype=torch.complex128), torch.randn(3, dtype=torch.complex128)]
    along = [torch.randn_like(leaf) for leaf in leaves]

    def outcome(at, mode) -> Tensor:
        x, w = at
        end = simulate(complex_loss, {"w": w}, [(x,)] * 3, rule, adjoint=mode[0], gradient=mode[1])[
            "w"
        ]
        return (2 * end.real + end.imag.sin()).sum()

    given = [leaf.clone().requires_grad_() for leaf in leaves]
    grads = torch.autograd.grad(outcome(given, mode), given)
    slope = sum(float((g.conj() * d).real.sum()) for g, d in zip(grads, along, strict=True))
    expected = directional(lambda at: outcome(at, MODES[0]), leaves, along, step=1e-5)
    assert slope == pytest.approx(expected, rel=1e-6)

    weight = leaves[1].clone().requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=getattr(rule, "momentum", 0.0))
    for _ in range(3):
        optimizer.zero_grad()
        complex_loss({"w": weight}, (leaves[0],)).backward()
        if isinstance(rule, Clipped):
            torch.nn.utils.clip_grad_norm_([weight], 0.5)
        optimizer.step()
    end = simulate(complex_loss, {"w": leaves[1]}, [(leaves[0],)] * 3, rule)["w"]
    torch.testing.assert_close(end, weight.detach(), rtol=0, atol=1e-6)


def test_elementwise_rules_refuse_complex_parameters():
    params = {"w": torch.randn(3, dtype=torch.complex128)}
    with pytest.raises(SimudyError, match="view_as_real"):
        simulate(complex_loss, params, [(torch.randn(2, 3) + 0j,)], Adam(lr=0.1))
