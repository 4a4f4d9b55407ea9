"""A run's directory: what lies where in it, and whether it is this run's."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from simudy.app.settings.fingerprint import VICTIM, digest, relevant
from simudy.errors import SimudyError
from simudy.files import write_atomically

FINISHED = ("converged", "finished", "diverged")


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
    report = property(lambda self: self.root / "report.html")
    result = property(lambda self: self.root / "result.json")

    def claim(self, cfg: DictConfig) -> None:
        """Make the directory this configuration's. What is not done yet may still be set otherwise.

        Raises:
            SimudyError: it holds another run.
        """
        if self.config.exists():
            old, new = relevant(self.settings()), relevant(cfg)
            if self.checkpoint.exists() or self.reconstruction.exists() or self.result.exists():
                _require_same(old, new, self.root)
            elif self.evidence.exists() and cfg.task != "reconstruct":
                _require_same(_of_victim(old), _of_victim(new), self.root)
        write_atomically(self.config, OmegaConf.to_yaml(cfg).encode())

    def settings(self) -> DictConfig:
        """The configuration the directory belongs to."""
        if not self.config.exists():
            raise SimudyError(
                f"no config.yaml in {self.root}: set hydra.run.dir to the directory of an earlier "
                "run"
            )
        return OmegaConf.load(self.config)  # type: ignore[return-value]

    def finished(self) -> dict[str, Any] | None:
        """The result, if the run has come to its end."""
        result = read_json(self.result) if self.result.exists() else {}
        return result if result.get("status") in FINISHED else None


def read_json(path: Path) -> dict[str, Any]:
    """A json file.

    Raises:
        SimudyError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise SimudyError(
            f"no {path.name} in {path.parent}: give a folder that an earlier run wrote"
        ) from error
    except ValueError as error:
        raise SimudyError(f"{path} is damaged: remove its folder and run again") from error


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    text = json.dumps(without_infinities(content), indent=2, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def without_infinities(content: Any) -> Any:
    """Plain data with null in place of NaN and infinity, which json does not know."""
    if isinstance(content, dict):
        return {k: without_infinities(v) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_infinities(v) for v in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _require_same(old: dict[str, Any], new: dict[str, Any], root: Path) -> None:
    if digest(old) == digest(new):
        return
    before, now = _flat(old), _flat(new)
    key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
    change = f"{key} was {before.get(key)} and is now {now.get(key)}"
    raise SimudyError(
        f"{root} holds a run with other settings ({change}): set another hydra.run.dir, or remove "
        "it"
    )


def _of_victim(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in VICTIM}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix.rstrip("."): node}
    return {
        key: value
        for name, child in node.items()
        for key, value in _flat(child, f"{prefix}{name}.").items()
    }
