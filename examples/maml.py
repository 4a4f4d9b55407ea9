"""MAML: learn initial weights from which two steps on ten points fit any sine."""

import torch
from torch import nn

from simudy import SGD, StatelessModel, simulate

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))
model = StatelessModel(net, criterion=lambda out, y: (out - y).square().mean(1))


def after_adapting(params, x, y):
    """The loss on ten points of a task, after two steps on ten others."""
    end = simulate(model.loss, params, [(x[:10], y[:10])] * 2, SGD(lr=0.05))
    return model.loss(end, (x[10:], y[10:]))


start = {name: p.requires_grad_() for name, p in model.params.items()}
outer = torch.optim.Adam(start.values(), lr=0.005)
losses = []
for _ in range(120):  # tasks: sines of any phase, 25 at once
    x, phase = 6 * torch.rand(25, 20, 1) - 3, 3 * torch.rand(25, 1, 1)
    loss = torch.func.vmap(after_adapting, in_dims=(None, 0, 0))(start, x, (x + phase).sin()).mean()
    outer.zero_grad()
    loss.backward()
    outer.step()
    losses.append(loss.item())

print(f"error after two steps from a random start: {losses[0]:.2f}")
print(f"from the learned one: {losses[-1]:.2f}")
assert losses[-1] < losses[0] / 3
