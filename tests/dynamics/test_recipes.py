"""What people come for, beside the library they come from: MAML and its kin, as ``higher`` has
them.
"""

from __future__ import annotations

import warnings

import higher
import pytest
import torch
from torch import Tensor, nn

from simudy import SGD, Direct, Mixed, Recompute, Reverse, StatelessModel, simulate

pytestmark = pytest.mark.usefixtures("float64")


def sinusoids() -> tuple[nn.Module, list[list[tuple[Tensor, Tensor]]]]:
    """A network, and six rounds of the same three tasks: ten points to adapt to, and ten others."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))
    x = 6 * torch.rand(3, 20, 1) - 3
    y = (1 + 4 * torch.rand(3, 1, 1)) * (x + 3 * torch.rand(3, 1, 1)).sin()
    return net, [list(zip(x, y, strict=True))] * 6


def by_higher() -> list[float]:
    net, rounds = sinusoids()
    meta, curve = torch.optim.Adam(net.parameters(), lr=0.01), []
    for tasks in rounds:
        meta.zero_grad()
        total = 0.0
        for x, y in tasks:
            inner = torch.optim.SGD(net.parameters(), lr=0.05)
            with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (copy, twin):
                for _ in range(3):
                    twin.step((copy(x[:10]) - y[:10]).square().mean())
                loss = (copy(x[10:]) - y[10:]).square().mean()
                loss.backward()
                total += loss.item()
        meta.step()
        curve.append(total)
    return curve


def by_simulate(adjoint, gradient) -> list[float]:
    net, rounds = sinusoids()
    model = StatelessModel(net, criterion=lambda out, y: (out - y).square().mean(1))
    start = {name: p.requires_grad_() for name, p in model.params.items()}
    meta, curve = torch.optim.Adam(start.values(), lr=0.01), []
    for tasks in rounds:
        meta.zero_grad()
        total = 0.0
        for x, y in tasks:
            batches = [(x[:10], y[:10])] * 3
            end = simulate(
                model.loss, start, batches, SGD(lr=0.05), adjoint=adjoint, gradient=gradient
            )
            loss = model.loss(end, (x[10:], y[10:]))
            loss.backward()
            total += loss.item()
        meta.step()
        curve.append(total)
    return curve


@pytest.mark.parametrize("mode", [(Direct(), Reverse()), (Recompute(every=2), Mixed())], ids=str)
def test_maml_has_the_curve_of_highers(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = by_higher()
    ours = by_simulate(*mode)
    assert theirs[-1] < theirs[0]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-9, atol=0)
