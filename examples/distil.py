"""Distillation: learn twelve points that train a network as well as six hundred do."""

import torch
from torch import nn

from simudy import SGD, StatelessModel, simulate

torch.manual_seed(0)
points = torch.randn(600, 2)
classes = (points.norm(dim=1) > 1.2).long()  # a disc, and what surrounds it
model = StatelessModel(nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2)))

images = points[:12].clone().requires_grad_()  # to be learned, with their soft labels
logits = (2 * nn.functional.one_hot(classes[:12], 2).float()).requires_grad_()
outer = torch.optim.Adam([images, logits], lr=0.1)
accuracy = []
for _ in range(50):
    batches = [(images, logits.softmax(1))] * 15
    end = simulate(model.loss, model.params, batches, SGD(lr=0.3, momentum=0.9))
    accuracy.append((model(end, points).argmax(1) == classes).float().mean())
    outer.zero_grad()
    model.loss(end, (points, classes)).backward()
    outer.step()

print(f"trained on twelve points: {accuracy[0]:.0%} of 600 right")
print(f"trained on twelve learned ones: {accuracy[-1]:.0%}")
assert accuracy[-1] > 0.9 > accuracy[0]
