"""Any torch dataset, torchvision's among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simudy.errors import SimudyError
from simudy.victim.data.images import Splits
from simudy.victim.data.pixels import as_pixels, channels_first
from simudy.victim.data.select import Pool, Selection, numbered_classes


@dataclass
class TorchDataset(Selection):
    """A map-style dataset of (image, label) pairs; an image is a PIL picture, or uint8 or floats in
    [0, 1] as a tensor.

    Labels come from `dataset.targets` where it has them; otherwise the whole dataset is read once
    to learn them. Normalisation is measured on the held-out images: leave it out of the dataset's
    transforms.

    Args:
        dataset: the object itself; as a setting,
            `data.dataset={_target_: torchvision.datasets.SVHN, root: …}`.
        n, heldout, pretrain, shuffle: see ``Selection``.
    """

    dataset: Any

    def load(self, *, seed: int) -> Splits:
        """Images (n, c, h, w). SimudyError where the images differ in size or leave [0, 1]."""
        labels = labels_of(self.dataset)
        pool = Pool(labels, names_of(self.dataset, labels), self.read)
        return self.of(pool, seed=seed)

    def read(self, indices: Tensor) -> Tensor:
        images = [picture(self.dataset[i][0]) for i in indices.tolist()]
        if len({tuple(image.shape) for image in images}) > 1:
            raise SimudyError(
                "images of the dataset differ in size or mode: give it a transform that makes them "
                "alike"
            )
        return torch.stack(images) if images else torch.empty(0, 1, 1, 1)


def picture(image: Any) -> Tensor:
    """(c, h, w) pixels of a PIL picture, array or tensor."""
    if isinstance(image, Tensor):
        values = image
    elif getattr(image, "mode", "L") in ("L", "RGB"):  # arrays have no mode
        values = np.array(image)
    else:  # palettes, CMYK, transparency
        values = np.array(image.convert("RGB"))
    return channels_first(as_pixels(values)[None])[0]


def labels_of(dataset: Any) -> Tensor:
    """(m,) int64. SimudyError where they are no classes."""
    targets = targets_of(dataset)
    if targets.is_floating_point() or targets.ndim != 1:
        raise SimudyError(
            f"labels of the dataset are {str(targets.dtype).removeprefix('torch.')} "
            f"{tuple(targets.shape)}: give one class number per image"
        )
    return targets


def targets_of(dataset: Any) -> Tensor:
    """(m,) int64 classes, or real targets (m, …). `targets` precede a target transform, so they
    count only where there is none.
    """
    targets = getattr(dataset, "targets", None)
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        targets = [torch.as_tensor(dataset[i][1]) for i in range(len(dataset))]
        targets = torch.stack(targets) if targets else torch.empty(0, dtype=torch.int64)
    targets = torch.as_tensor(targets)
    return targets.float() if targets.is_floating_point() else targets.long()


def names_of(dataset: Any, labels: Tensor) -> tuple[str, ...]:
    """The dataset's own class names if it gives one per label, else numbers."""
    numbers = numbered_classes(labels)
    names = tuple(str(name) for name in getattr(dataset, "classes", ()))
    return names if len(names) >= len(numbers) else numbers
