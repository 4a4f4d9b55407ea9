"""What an attack returns, to look at and to keep."""

from __future__ import annotations

import csv
import html
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from simudy.errors import SimudyError
from simudy.files import user_path, without_infinities, write_atomically
from simudy.pictures import as_bytes, inline_png, picture
from simudy.progress import in_notebook
from simudy.tensors import plain

_MOST = 60  # images in a notebook
_GRID = "display:flex;flex-wrap:wrap;gap:8px;font:12px sans-serif"
_IMAGE = "display:block;width:96px;image-rendering:pixelated"


@dataclass(repr=False)
class Reconstruction:
    """What an attack returns: the best iterate, by objective.

    Attributes:
        images: normalised ``(m, c, h, w)``.
        labels: class indices ``(m,)`` or probabilities ``(m, classes)``.
        status: ``converged``, ``finished``, ``diverged`` or ``interrupted``.
        objective: at the best iterate; infinite where no step was finite, and then the images are
            the initial dummies.
        distance: likewise.
        learned: factors on learned hyper-parameters, by name.
        iterations: outer steps taken.
        seconds: spent in them.
        history: one row per outer step: iteration, objective, distance, seconds.
        mean, std: what brings the images back to pixels.
    """

    images: Tensor
    labels: Tensor
    status: str
    objective: float
    distance: float
    learned: dict[str, float]
    iterations: int
    seconds: float
    history: list[dict[str, float]]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def pixels(self) -> Tensor:
        """The images in [0, 1], as far as they are: not clipped."""
        mean, std = (self.images.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return self.images * std + mean

    def __repr__(self) -> str:
        size = "×".join(map(str, self.images.shape[1:]))
        return (
            f"Reconstruction: {len(self.images)} images of {size}, {self.status} after "
            f"{self.iterations} iterations in {self.seconds:.0f} s, distance {self.distance:.1e}"
        )

    def _repr_html_(self) -> str:
        """A small gallery, as notebooks ask for it; it loads nothing."""
        head = f"<p>{html.escape(repr(self))}</p>"
        if self.images.dim() != 4:
            return head
        figures = "".join(
            f'<div><img style="{_IMAGE}" alt="reconstructed image {i}" '
            f'src="{inline_png(pixels)}">{i}</div>'
            for i, pixels in enumerate(as_bytes(self.pixels[:_MOST]))
        )
        left = len(self.images) - _MOST
        rest = f"<p>and {left} more: save(folder) writes them all</p>" if left > 0 else ""
        return f'{head}<div style="{_GRID}">{figures}</div>{rest}'

    def show(self) -> None:
        """The gallery in a notebook; elsewhere all images side by side, in the system's viewer.

        Raises:
            SimudyError: these are no pictures.
        """
        self._require_pictures()
        if in_notebook():
            sys.modules["IPython"].display.display(self)
        else:
            picture(_side_by_side(self.pixels)).show()

    def save(self, folder: str | Path) -> None:
        """Write ``reconstruction.safetensors``, ``history.csv``, and each picture as a PNG."""
        folder = user_path(folder)
        facts = {key: getattr(self, key) for key in ("status", "objective", "distance")}
        facts |= {"n": len(self.images), "iterations": self.iterations, "seconds": self.seconds}
        self.write_tensors(folder / "reconstruction.safetensors", facts)
        if self.history:
            rows = io.StringIO()
            table = csv.DictWriter(rows, list(self.history[0]))
            table.writeheader()
            table.writerows(self.history)
            write_atomically(folder / "history.csv", rows.getvalue().encode())
        if self.images.dim() == 4:
            for i, pixels in enumerate(as_bytes(self.pixels)):
                picture(pixels).save(folder / f"{i:0{len(str(len(self.images)))}}.png")

    def write_tensors(self, path: Path, facts: dict[str, Any]) -> None:
        """Images, labels and what was learned, as tensors by name; ``facts`` as json beside
        them.
        """
        learned = {f"learned.{name}": torch.tensor(value) for name, value in self.learned.items()}
        tensors = {"images": self.images, "labels": self.labels, **learned}
        head = json.dumps(without_infinities(facts))
        write_atomically(path, save(plain(tensors), metadata={"facts": head}))

    def _require_pictures(self) -> None:
        if self.images.dim() != 4:
            raise SimudyError(
                f"what was reconstructed is of shape {tuple(self.images.shape)}, no pictures: look "
                "at .images"
            )


def _side_by_side(pixels: Tensor, columns: int = 10) -> Any:
    """Bytes ``(h, w, 3)`` of all images in rows of ``columns``, enlarged to about 96 pixels."""
    n, c, h, w = pixels.shape
    rows, times = -(-n // columns), max(1, round(96 / max(h, w)))
    sheet = pixels.new_ones(rows * min(columns, n), c, h + 1, w + 1)
    sheet[:n, :, :h, :w] = pixels
    lines = sheet.unflatten(0, (rows, -1)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    large = lines.repeat_interleave(times, 1).repeat_interleave(times, 2)
    return as_bytes(large[None])[0]
