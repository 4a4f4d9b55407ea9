"""A person's own images, all of them and under her own names, to judge by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simudy.errors import SimudyError
from simudy.victim.data.folder import Folder, pictures, stack
from simudy.victim.data.npz import read_archive, require_labels
from simudy.victim.data.pixels import as_pixels, channels_first
from simudy.victim.data.torch_dataset import picture, targets_of


@dataclass(frozen=True, eq=False)
class Named:
    """Images with what is known of each.

    Attributes:
        images: pixels ``(n, c, h, w)`` in [0, 1].
        names: as a person finds them again.
        labels: ``(n,)`` int64; real targets ``(n, …)``; or None where they are unknown.
    """

    images: Tensor
    names: tuple[str, ...]
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)


def read_named(path: Path, where: str, *, channels: int, size: int | None = None) -> Named:
    """The images of a folder of pictures, or of an ``.npz`` archive.

    A folder is searched to any depth, in the order of names; where every picture lies in a
    sub-folder, these are the classes. An archive holds ``images``, and may hold ``labels``.

    Args:
        path: the folder or file.
        where: the key that names it, for messages.
        channels: 1 reads pictures as grey.
        size: crop pictures to squares of this many pixels. Default: as they are.

    Raises:
        SimudyError: nothing is there, or it cannot be read.
    """
    if path.is_dir():
        return _of_folder(path, where, Folder(str(path), size=size, grey=channels == 1))
    if not path.is_file():
        raise SimudyError(f"no folder or .npz file '{path}': set {where} to one of images")
    arrays = read_archive(path, ("images",), optional=("labels",))
    pixels, labels = channels_first(as_pixels(arrays["images"])), arrays.get("labels")
    names = tuple(f"{path.name}[{i}]" for i in range(len(pixels)))
    if labels is None:
        return Named(pixels, names)
    if labels.dtype.kind == "f" and len(labels) == len(pixels):
        return Named(pixels, names, torch.from_numpy(labels).float())
    require_labels(labels, tuple(pixels.shape[:1]), path)
    return Named(pixels, names, torch.from_numpy(labels).long())


def _of_folder(root: Path, where: str, reader: Folder) -> Named:
    files = pictures(root, root=root)
    if not files:
        raise SimudyError(f"no pictures under '{root}': set {where} to a folder that has some")
    places = [file.relative_to(root) for file in files]
    classes = sorted({place.parts[0] for place in places})
    sorted_in = all(len(place.parts) > 1 for place in places)
    labels = torch.tensor([classes.index(place.parts[0]) for place in places])
    images = stack([reader.picture(file) for file in files])
    return Named(images, tuple(map(str, places)), labels if sorted_in else None)


def named_of_dataset(dataset: Any) -> Named:
    """All of a map-style torch dataset of (image, label) pairs; file names where it knows them.

    Raises:
        SimudyError: it is empty, or its images differ in size or leave [0, 1].
    """
    if not len(dataset):
        raise SimudyError("the dataset holds no image: point it at one that does")
    images = [picture(dataset[i][0]) for i in range(len(dataset))]
    if len({tuple(image.shape) for image in images}) > 1:
        raise SimudyError(
            "images of the dataset differ in size or mode: give it a transform that makes them "
            "alike"
        )
    files = getattr(dataset, "samples", None) or range(len(dataset))  # as ImageFolder has them
    names = tuple(Path(one[0]).name if isinstance(one, tuple) else str(one) for one in files)
    return Named(torch.stack(images), names, targets_of(dataset))
