"""A learned optimizer: a rule with a small network in it, trained through the runs it makes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simudy import SGD, Adam, StatelessModel, simulate
from simudy.dynamics.optim import PerTensor

torch.manual_seed(0)
model = StatelessModel(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)))


@dataclass
class Learned(PerTensor):
    """Every number steps by what a network of ten units makes of its gradient and momentum."""

    inside: Tensor  # (2, 10)
    outside: Tensor  # (10, 1)

    def step(self, grad, state, param):
        momentum = grad if state is None else 0.9 * state + grad
        seen = torch.stack((grad, momentum), dim=-1) * 10
        return param - 0.1 * ((seen @ self.inside).tanh() @ self.outside)[..., 0], momentum


def task(n):
    """Points about a line of any direction, and which side of it they are on."""
    points, line = torch.randn(n, 80, 2), torch.randn(n, 2, 1)
    return points, (points @ line).squeeze(2).gt(0).long()


def mean_after(rule, tasks):
    def after(*batch):
        return model.loss(simulate(model.loss, model.params, [batch] * 10, rule), batch)

    return torch.func.vmap(after)(*tasks).mean()


rule = Learned(0.1 * torch.randn(2, 10), 0.1 * torch.randn(10, 1))
weights = [rule.inside.requires_grad_(), rule.outside.requires_grad_()]
outer = torch.optim.Adam(weights, lr=0.02)
for _ in range(60):
    outer.zero_grad()
    mean_after(rule, task(8)).backward()
    outer.step()

with torch.no_grad():
    unseen = task(32)
    learned = mean_after(rule, unseen)
    rules = [SGD(lr=lr, momentum=0.9) for lr in (0.1, 0.3, 1.0)] + [
        Adam(lr=lr) for lr in (0.03, 0.1)
    ]
    best = min(mean_after(other, unseen) for other in rules)
print(
    f"loss after ten steps on tasks not met before: {learned:.3f}, best of SGD and Adam {best:.3f}"
)
assert learned < best
