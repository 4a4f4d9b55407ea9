"""A folder of pictures, one sub-folder per class."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from simudy.errors import SimudyError
from simudy.files import user_path
from simudy.ranges import SIDE
from simudy.victim.data.images import Splits
from simudy.victim.data.pixels import as_pixels
from simudy.victim.data.select import Pool, Selection

OTHERS = 50_000  # files and folders beside pictures
PIXELS = 2**26  # of a picture: beyond any camera
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


@dataclass
class Folder(Selection):
    """Pictures in `root/<class>/…`, searched to any depth (so TinyImageNet's
    `<class>/images/*.JPEG` works as it is).

    Args:
        root: the folder.
        size: height and width in pixels, by centre crop and antialiased resize; None: as they are,
            if all alike.
        grey: luma alone.
        n, heldout, pretrain, shuffle: see ``Selection``; the first are those by name.
    """

    root: str
    size: Annotated[int | None, SIDE] = None
    grey: bool = False

    def load(self, *, seed: int) -> Splits:
        """Images (n, 3 or 1, h, w). SimudyError for a missing folder, a broken picture, sizes that
        differ.
        """
        classes, paths, labels = catalogue(user_path(self.root))

        def read(indices: Tensor) -> Tensor:
            return stack([self.picture(paths[i]) for i in indices.tolist()])

        pool = Pool(torch.tensor(labels, dtype=torch.int64), classes, read)
        return self.of(pool, seed=seed)

    def picture(self, path: Path) -> Tensor:
        """(c, h, w) pixels of one file."""
        from PIL import Image, ImageOps

        image = decoded(path).convert("L" if self.grey else "RGB")
        if self.size is not None:
            image = ImageOps.fit(image, (self.size, self.size), method=Image.Resampling.BICUBIC)
        pixels = as_pixels(np.array(image))
        return pixels[None] if self.grey else pixels.permute(2, 0, 1)


def decoded(path: Path) -> Any:
    """A PIL picture of 8 bits a channel.

    Raises:
        SimudyError: the file is damaged, of another depth, or unpacks to too many pixels.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(path) as file:
            warnings.simplefilter("ignore")  # of large pictures: refused below
            if (pixels := file.size[0] * file.size[1]) > PIXELS:
                raise SimudyError(f"'{path}' unpacks to {pixels:,} pixels: replace or remove it")
            file.load()
            return _of_8_bits(file)
    except SimudyError:
        raise
    except Exception as error:  # decoders raise what they like on bytes from anywhere
        raise SimudyError(f"cannot read '{path}' as a picture: replace or remove it") from error


def _of_8_bits(image: Any) -> Any:
    """Pillow would clip 16 bits to white."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray(((np.array(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}")
    return image.copy()


def catalogue(root: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """Class names, picture paths and their labels, sorted by name."""
    folders = (
        sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
        if root.is_dir()
        else []
    )
    if not folders:
        raise SimudyError(
            f"no class folders in '{root}': set Folder(root=…) to a folder with one "
            "sub-folder per class"
        )
    found = [
        (path, label)
        for label, folder in enumerate(folders)
        for path in pictures(folder, root=root)
    ]
    if not found:
        raise SimudyError(
            f"no pictures under '{root}': Folder(root=…) takes {', '.join(sorted(SUFFIXES))}"
        )
    return (
        tuple(p.name for p in folders),
        [path for path, _ in found],
        [label for _, label in found],
    )


def pictures(folder: Path, *, root: Path) -> list[Path]:
    """The pictures below a folder, by name.

    Raises:
        SimudyError: next to none of very many files is a picture: someone's whole disk, say.
    """
    found, others = [], 0
    for at, _, names in os.walk(folder):
        here = [Path(at, name) for name in names if Path(name).suffix.lower() in SUFFIXES]
        found += [path for path in here if path.is_file()]
        others += 1 + len(names) - len(here)
        if others > OTHERS and others > 10 * len(found):
            raise SimudyError(
                f"'{root}' holds more than {OTHERS:,} files that are no pictures: set "
                "Folder(root=…) to a folder with one sub-folder per class"
            )
    return sorted(found)


def stack(images: list[Tensor]) -> Tensor:
    """(n, c, h, w) of images that must be alike."""
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        few = ", ".join(map(str, sorted(sizes)[:3]))
        raise SimudyError(
            f"images differ in size ({few}, …): set Folder(size=…) to resize them all"
        )
    return torch.stack(images) if images else torch.empty(0, 1, 1, 1)
