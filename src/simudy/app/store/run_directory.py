"""A run's directory: what lies where in it, and whether it is this run's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from omegaconf import DictConfig, OmegaConf

from simudy.app.settings.fingerprint import VICTIM, digest, relevant
from simudy.app.store.settings_file import read_raw, read_settings
from simudy.errors import SimudyError
from simudy.files import read_json, write_atomically
from simudy.plain import flatten
from simudy.ranges import MEASURED

FINISHED = ("converged", "finished", "diverged")
PRUNED = "pruned"  # stopped early in a sweep: without a pruner the same run goes on


@dataclass(frozen=True)
class RunDirectory:
    """The places in a run's directory."""

    root: Path

    config = property(lambda self: self.root / "config.yaml")
    evidence = property(lambda self: self.root / "evidence")
    secret = property(lambda self: self.root / "secret")
    checkpoint = property(lambda self: self.root / "checkpoint")
    history = property(lambda self: self.root / "history.csv")
    reconstruction = property(lambda self: self.root / "reconstruction.safetensors")
    gallery = property(lambda self: self.root / "gallery.png")
    gallery_page = property(lambda self: self.root / "gallery.html")
    report = property(lambda self: self.root / "report.html")
    agreement = property(lambda self: self.root / "agreement.json")
    diagnosis = property(lambda self: self.root / "diagnosis.json")
    membership = property(lambda self: self.root / "membership.json")
    exposure = property(lambda self: self.root / "exposure.json")
    result = property(lambda self: self.root / "result.json")

    def claim(self, cfg: DictConfig) -> None:
        """Make the directory this configuration's. What is not done yet may still be set otherwise.

        Raises:
            SimudyError: it holds another run.
        """
        if self.config.exists():
            old, new = relevant(read_raw(self.config)), relevant(cfg)
            if self.checkpoint.exists() or self.reconstruction.exists() or self.result.exists():
                _require_same(old, new, self.root)
            elif self.evidence.exists() and cfg.task != "reconstruct":
                _require_same(_of_victim(old), _of_victim(new), self.root)
        write_atomically(self.config, OmegaConf.to_yaml(cfg, resolve=True).encode())

    def settings(self, call: DictConfig) -> DictConfig:
        """The configuration the directory belongs to, for a task that goes by it.

        Args:
            call: the settings of this very call, which vouch for classes that are not ours.

        Raises:
            SimudyError: it is missing or damaged, or names what nobody vouches for.
        """
        return read_settings(self.config, call)

    def finished(self, *, pruning: bool = False) -> dict[str, Any] | None:
        """The result, if the run has come to its end.

        Args:
            pruning: where it was pruned, that is its end.

        Raises:
            SimudyError: it is damaged.
        """
        result = read_result(self.result) if self.result.exists() else {}
        ends = (*FINISHED, PRUNED) if pruning else FINISHED
        return result if result.get("status") in ends else None


Figure = Annotated[float | None, MEASURED]


class _Required(TypedDict):
    status: str


class Result(_Required, total=False):
    """``result.json``, as far as it is relied upon."""

    ssim_paper: Figure
    ssim: Figure
    psnr: Figure
    mse: Figure
    recovered: Figure
    m_lin: Figure
    auc: Figure
    distance: Figure
    objective: Figure
    floor: dict[str, Figure] | None
    n: int | None


def read_result(path: Path) -> dict[str, Any]:
    """A run's result.

    Raises:
        SimudyError: it is damaged.
    """
    return read_json(path, Result, f"remove it, or {path.parent} to run again")


def _require_same(old: dict[str, Any], new: dict[str, Any], root: Path) -> None:
    if digest(old) == digest(new):
        return
    before, now = (
        {key: json.dumps(value, default=str) for key, value in flatten(settings).items()}
        for settings in (old, new)
    )
    differ = (key for key in {**before, **now} if before.get(key) != now.get(key))
    key = next(differ, "the order or nesting of settings")
    change = f"{key} was {before.get(key, 'not set')} and is now {now.get(key, 'not set')}"
    raise SimudyError(
        f"{root} holds a run with other settings ({change}): set another hydra.run.dir, or remove "
        "it"
    )


def _of_victim(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in VICTIM}
