"""The secret on disk: the true images, and the controls beside them. For the scorer alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from simudy.app.store.run_directory import read_json, write_json
from simudy.victim.data import ImageSet, Normalisation


@dataclass(frozen=True)
class Secret:
    """What the victim was trained on, and what it was not."""

    victim: ImageSet
    heldout: ImageSet
    normalisation: Normalisation

    def save(self, folder: Path) -> None:
        """Write ``images.safetensors`` and ``secret.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors(), folder / "images.safetensors")
        facts = {
            "classes": self.victim.classes,
            "mean": self.normalisation.mean,
            "std": self.normalisation.std,
        }
        write_json(folder / "secret.json", facts)

    @classmethod
    def load(cls, folder: Path) -> Secret | None:
        """Read what ``save`` wrote; None where there is no secret, as in an audit."""
        if not (folder / "secret.json").exists():
            return None
        facts, tensors = read_json(folder / "secret.json"), load_file(folder / "images.safetensors")
        victim, heldout = (
            ImageSet(tensors[f"{part}_images"], tensors[f"{part}_labels"], tuple(facts["classes"]))
            for part in ("victim", "heldout")
        )
        return cls(victim, heldout, Normalisation(tuple(facts["mean"]), tuple(facts["std"])))

    def normalised(self) -> tuple[Tensor, Tensor]:
        """The true and the held-out images as the network sees them."""
        return self.normalisation.normalise(self.victim.images), self.normalisation.normalise(
            self.heldout.images
        )

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"victim": self.victim, "heldout": self.heldout}
        images = {f"{name}_images": part.images.contiguous() for name, part in parts.items()}
        return images | {f"{name}_labels": part.labels.contiguous() for name, part in parts.items()}
