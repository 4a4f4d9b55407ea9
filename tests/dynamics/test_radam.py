"""RAdam below and above the length at which its variance is tractable, against a torch loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from simudy import simulate
from simudy.dynamics.optim import RAdam

STEPS = 8


def loss(params, batch):
    return (params["w"] - batch[0]).square().mul(batch[0].cos() + 2).sum()


def end(x: Tensor, lr: float | Tensor, beta2: float | Tensor) -> Tensor:
    start = {"w": torch.ones_like(x)}
    return simulate(loss, start, [(x,)] * STEPS, RAdam(lr=lr, beta2=beta2))["w"]


def torchs_end(x: Tensor, lr: float, beta2: float) -> Tensor:
    w = torch.ones_like(x, requires_grad=True)
    optimizer = torch.optim.RAdam([w], lr=lr, betas=(0.9, beta2))
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss({"w": w}, (x,)).backward()
        optimizer.step()
    return w.detach()


@pytest.mark.parametrize("beta2", [0.0, 0.3, 0.5, 0.59, 0.6, 0.61, 0.7, 0.8, 0.99])
def test_every_beta2_gives_torchs_values_and_exact_derivatives(beta2):
    x, rates = torch.randn(3, dtype=torch.float64), torch.tensor([0.1, beta2], dtype=torch.float64)
    expected = torchs_end(x, 0.1, beta2)
    torch.testing.assert_close(end(x, 0.1, beta2), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(end(x, *rates), expected, rtol=0, atol=1e-12)
    leaves = [v.clone().requires_grad_() for v in (x, *rates)]
    assert torch.autograd.gradcheck(end, [*leaves[:2], rates[1]])
    if beta2 not in (0.0, 0.6):  # no room below, and the edge
        assert torch.autograd.gradcheck(end, leaves)
    assert all(g.isfinite().all() for g in torch.autograd.grad(end(*leaves).sum(), leaves))
