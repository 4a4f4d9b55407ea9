"""Poisoning: every training point is nudged a little, no label is touched, and one other point is
misread.
"""

import torch
from torch import nn

from simudy import Adam, StatelessModel, simulate

torch.manual_seed(0)
points = torch.randn(80, 2) + torch.tensor([[-1.5], [1.5]]).repeat_interleave(40, 0)
classes = torch.arange(80) // 40
victim = torch.tensor([[0.6, 0.6]])  # of class 1; the attacker wants it read as 0
model = StatelessModel(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)))

nudge = torch.zeros(80, 2, requires_grad=True)  # at most 0.5 in each coordinate
outer = torch.optim.Adam([nudge], lr=0.3)
odds = []
for _ in range(20):
    poisoned = points + 0.5 * nudge.tanh()
    end = simulate(model.loss, model.params, [(poisoned, classes)] * 20, Adam(lr=0.05))
    odds.append(model(end, victim).softmax(1)[0, 1])
    outer.zero_grad()
    odds[-1].backward()
    outer.step()

right = (model(end, points).argmax(1) == classes).float().mean()
print(f"class 1 with {odds[0]:.0%}, poisoned {odds[-1]:.0%}; clean points right: {right:.0%}")
assert odds[0] > 0.5 > odds[-1]
