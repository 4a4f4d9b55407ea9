"""Influence: what each training point did to the loss at the end, by one derivative of the run."""

import torch
from torch import nn

from simudy import SGD, StatelessModel, simulate

torch.manual_seed(0)
points = torch.randn(280, 2)
classes = (points[:, 0] + 0.5 * points[:, 1] > 0.3 * torch.randn(280)).long()  # some are odd
seen, unseen = (points[:100], classes[:100]), (points[100:], classes[100:])
rule = SGD(lr=0.3, momentum=0.9, weight_decay=0.01)
model = StatelessModel(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)))


def final_loss(weights):
    """The loss on the unseen points after 40 steps on the seen ones, each with a weight."""
    end = simulate(model.loss, model.params, [(*seen, weights)] * 40, rule)
    return model.loss(end, unseen)


everyone = torch.ones(100, requires_grad=True)
influence = -torch.autograd.grad(final_loss(everyone), everyone)[0]  # of leaving one out

without_one = 1 - torch.eye(100)  # the same, by training a hundred times
retrained = torch.func.vmap(final_loss)(without_one) - final_loss(everyone).detach()

correlation = torch.corrcoef(torch.stack((influence, retrained)))[0, 1]
worst = influence.argmin()
print(f"correlation with leaving one out and training again: {correlation:.3f}")
print(f"best left out: point {worst}, class {classes[worst]} at {points[worst].tolist()}")
assert correlation > 0.95
