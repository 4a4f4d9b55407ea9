"""Audit: two checkpoints of a plain torch training loop, and what they give away."""

from pathlib import Path
from tempfile import mkdtemp

import torch
from skimage.data import lfw_subset
from torch import nn

from simudy import (
    SGD,
    Factored,
    Outer,
    Recipe,
    Simudy,
    evidence_from_weights,
    reconstruct,
    save_gallery,
    score,
)

torch.manual_seed(0)
folder = Path(mkdtemp())
net = nn.Sequential(nn.Flatten(), nn.Linear(25 * 25, 500), nn.ReLU(), nn.Linear(500, 2))

# Somebody trains, and publishes the weights before and after.
crops = torch.from_numpy(lfw_subset()).float()[:, None]  # (200, 1, 25, 25): faces, then others
images, labels = crops[[0, 1, 2, 3, 100, 101, 102, 103]], torch.arange(8) // 4
torch.save(net.state_dict(), folder / "before.pt")
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
for _ in range(10):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(images), labels).backward()
    optimizer.step()
torch.save(net.state_dict(), folder / "after.pt")

# Somebody else has the two files, the architecture and the recipe.
before, after = (torch.load(folder / f"{name}.pt") for name in ("before", "after"))
recipe = Recipe(SGD(lr=0.01), epochs=10)
evidence = evidence_from_weights(
    net, before, after, recipe=recipe, shape=(1, 25, 25), classes=2, n=8
)
method = Simudy(images="span", noise=0.1, gradient=Factored())
found = reconstruct(evidence, method=method, outer=Outer(lr=0.05, iterations=300), seed=0)

judged = score(found.images, images, normalisation=None, heldout=crops[50:58])
gallery = folder / "gallery.png"
save_gallery(gallery, images, found.images, judged, normalisation=None, title="An audit")
print(f"distance {found.distance:.1e} after {found.iterations} iterations")
print(f"SSIM {judged.ssim_paper:.3f}; images that saw no weights: {judged.highest_floor:.3f}")
print(f"the pictures: {gallery}")
assert judged.ssim_paper > 0.9 > judged.highest_floor
