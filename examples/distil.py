"""Distillation: one learned image of a face, and one of none, train a network as a hundred do."""

import torch
from skimage.data import lfw_subset
from torch import nn

from simudy import SGD, Mixed, Recompute, StatelessModel, simulate


def distil(steps, iterations, *, adjoint, gradient, width=64):
    """Two images, their labels and a learning rate from which ``steps`` steps train a network.

    Returns the share of unseen images that a network of other initial weights, trained so, gets
    right: before and after learning.
    """
    torch.manual_seed(0)
    crops = torch.from_numpy(lfw_subset()).float().flatten(1) - 0.5  # 100 faces, 100 others
    classes = torch.arange(200) // 100
    odd = torch.arange(200) % 2 == 1
    net = nn.Sequential(nn.Linear(625, width), nn.Tanh(), nn.Linear(width, 2))
    model = StatelessModel(net)
    images = crops[[0, 100]].clone().requires_grad_()  # one per class
    logits, log = (2 * torch.eye(2)).requires_grad_(), torch.tensor(-4.0, requires_grad=True)
    outer = torch.optim.Adam([images, logits, log], lr=0.03)

    def trained():
        """Other initial weights each time, or the images would fit these alone."""
        params = {k: torch.randn_like(p) * p.shape[-1] ** -0.5 for k, p in model.params.items()}
        batches, rule = [(images, logits.softmax(1))] * steps, SGD(lr=log.exp(), momentum=0.9)
        return simulate(model.loss, params, batches, rule, adjoint=adjoint, gradient=gradient)

    def right():
        with torch.no_grad():
            found = [model(trained(), crops[odd]).argmax(1) == classes[odd] for _ in range(10)]
        return float(torch.stack(found).float().mean())

    before = right()
    for _ in range(iterations):
        outer.zero_grad()
        model.loss(trained(), (crops[~odd], classes[~odd])).backward()
        outer.step()
    return before, right()


if __name__ == "__main__":
    before, after = distil(12, 40, adjoint=Recompute(every=3), gradient=Mixed())
    print(f"trained on a face and a crop of none: {before:.0%} of 100 unseen crops right")
    print(f"trained on two learned ones: {after:.0%}")
    assert after > 0.85 > before
