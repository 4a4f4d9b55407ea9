"""Hyper-gradients: learn the weight decay of every layer from the loss on points not trained on."""

import torch
from torch import nn

from simudy import SGD, StatelessModel, simulate
from simudy.dynamics.optim import Groups

torch.manual_seed(0)
points = torch.randn(360, 20)  # one direction of twenty counts, and some labels are wrong
classes = (points[:, 0] + points[:, 1] > torch.randn(360)).long()
seen, unseen = (points[:60], classes[:60]), (points[60:], classes[60:])
model = StatelessModel(nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 2)))

logs = torch.full((2,), -6.0, requires_grad=True)  # of the decay of each layer
outer = torch.optim.Adam([logs], lr=0.3)
losses = []
for _ in range(15):
    each = [SGD(lr=0.3, momentum=0.9, weight_decay=log.exp()) for log in logs]
    rule = Groups({"0.*": each[0], "2.*": each[1]})
    end = simulate(model.loss, model.params, [seen] * 40, rule)
    losses.append(model.loss(end, unseen))
    outer.zero_grad()
    losses[-1].backward()
    outer.step()

first, last = logs.exp().tolist()
print(f"weight decay of the first layer {first:.4f}, of the last {last:.4f}")
print(f"validation loss {losses[0]:.2f} → {losses[-1]:.2f}")
assert losses[-1] < 0.6 * losses[0]
