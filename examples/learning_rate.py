"""Hyper-gradients: learn a learning rate and a momentum through the training run they drive."""

import torch
from torch import nn

from simudy import SGD, StatelessModel, simulate

torch.manual_seed(0)
points = torch.randn(300, 2)
classes = (points[:, 0] * points[:, 1] > 0).long()
seen, unseen = (points[:100], classes[:100]), (points[100:], classes[100:])
model = StatelessModel(nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2)))

logs = torch.tensor([-3.0, -1.0], requires_grad=True)  # of the learning rate, and of 1 − momentum
outer = torch.optim.Adam([logs], lr=0.2)
losses = []
for _ in range(25):
    rule = SGD(lr=logs[0].exp(), momentum=1 - logs[1].exp())
    end = simulate(model.loss, model.params, [seen] * 20, rule)
    losses.append(model.loss(end, unseen))
    outer.zero_grad()
    losses[-1].backward()
    outer.step()

print(f"lr {logs[0].exp():.2f}, momentum {1 - logs[1].exp():.2f}")
print(f"validation loss {losses[0]:.2f} → {losses[-1]:.2f}")
assert losses[-1] < losses[0] / 2
