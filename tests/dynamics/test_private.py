"""DP-SGD as a rule: each sample clipped, noise on the mean, and nothing of the noise told."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simudy import SGD, Clipped, SimudyError, StatelessModel, simulate
from simudy.dynamics.optim import Accumulated, Averaged, Groups, Noised, private
from simudy.dynamics.optim.noised import public

pytestmark = pytest.mark.usefixtures("float64")
N, CLIP, LR = 4, 1.3, 0.5


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def samples():
    torch.manual_seed(1)
    return torch.randn(N, 5), torch.arange(N) % 3


def ours(noise, *, steps=2, rule=None, seed=0):
    model, (x, y) = StatelessModel(network()), samples()
    rule = private(
        rule or SGD(lr=LR, momentum=0.9), max_norm=CLIP, noise=noise, samples=N, seed=seed
    )
    batches = [(x[i : i + 1], y[i : i + 1]) for i in range(N)] * steps
    return simulate(model.loss, model.params, batches, rule)


def per_sample_gradients(module):
    for x, y in zip(*samples(), strict=True):
        grads = torch.autograd.grad(F.cross_entropy(module(x[None]), y[None]), module.parameters())
        yield list(grads)


def test_a_step_is_that_of_the_paper():
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9)
    clipped = 0
    for _ in range(2):
        total = [torch.zeros_like(p) for p in module.parameters()]
        for grads in per_sample_gradients(module):
            norm = torch.cat([g.flatten() for g in grads]).norm()
            clipped += int(norm > CLIP)
            total = [
                t + g * min(1, CLIP / (norm + 1e-6)) for t, g in zip(total, grads, strict=True)
            ]
        for p, t in zip(module.parameters(), total, strict=True):
            p.grad = t / N
        optimizer.step()
    assert 0 < clipped < 2 * N  # some are, some are not
    for name, p in module.named_parameters():
        torch.testing.assert_close(ours(0.0)[name], p.detach())


def test_a_step_is_that_of_opacus():
    """Where it is installed: its own optimizer, given the samples' gradients."""
    optimizers = pytest.importorskip("opacus.optimizers")
    module = network()
    optimizer = optimizers.DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        expected_batch_size=N,
    )
    for _ in range(2):
        columns = zip(*per_sample_gradients(module), strict=True)
        for p, grads in zip(module.parameters(), columns, strict=True):
            p.grad_sample = torch.stack(grads)
        optimizer.step()
        optimizer.zero_grad()
    for name, p in module.named_parameters():
        torch.testing.assert_close(ours(0.0)[name], p.detach())


def test_the_noise_is_as_strong_as_said_fresh_at_each_step_and_repeatable():
    params = {"w": torch.zeros(200, 200)}
    rule = Noised(SGD(lr=1.0), std=0.3, seed=5)
    state, ends = rule.init(params), []
    for _ in range(2):
        end, state = rule.update({"w": torch.zeros(200, 200)}, state, params)
        ends.append(end["w"])
    assert float(ends[0].std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack([e.flatten() for e in ends]))[0, 1])) < 0.03
    again, _ = rule.update({"w": torch.zeros(200, 200)}, rule.init(params), params)
    torch.testing.assert_close(again["w"], ends[0], rtol=0, atol=0)
    lot = private(SGD(), max_norm=CLIP, noise=2.0, samples=N)
    assert lot.rule.rule.std == pytest.approx(2.0 * CLIP / N)  # pyright: ignore


def test_what_is_public_holds_no_noise():
    rule = Averaged(private(SGD(lr=LR), noise=1.0, samples=N, seed=7))
    assert public(rule) == Averaged(Clipped(Accumulated(SGD(lr=LR), every=N), max_norm=1.0))
    assert "7" not in repr(public(rule))


def test_what_is_public_of_groups_holds_no_noise_and_what_has_none_stays_the_same():
    noised = Groups({"*.bias": None, "*": private(SGD(lr=LR), noise=1.0, samples=N, seed=7)})
    told = public(noised)
    assert "Noised" not in repr(told) and told == Groups(
        {"*.bias": None, "*": Clipped(Accumulated(SGD(lr=LR), every=N), max_norm=1.0)}
    )
    plain = Averaged(Clipped(SGD(lr=LR), max_norm=1.0))
    assert public(plain) is plain


def test_a_negative_multiplier_is_refused():
    with pytest.raises(SimudyError, match="0 or more"):
        private(SGD(), noise=-1.0, samples=2)
