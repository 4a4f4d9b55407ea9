"""What makes two runs the same run: a hash of the settings that a result depends on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Where a run reports, stores and is called does not change what it finds. The tasks below are
# stages of one run.
IRRELEVANT = (
    "hydra",
    "name",
    "intervals",
    "tracker",
    "pruner",
    "cache",
    "memory",
    "dry_run",
    "parallel",
    "verdict",
)
VICTIM = (
    "seed",
    "data",
    "model",
    "inner",
    "recipe",
    "victim",
    "evidence",
)  # what the evidence depends on
STAGES = ("run", "victim", "reconstruct", "score")


def config_hash(cfg: DictConfig) -> str:
    """Twelve hexadecimal digits, the same for settings that give the same result."""
    return digest(relevant(cfg))


def relevant(cfg: DictConfig) -> dict[str, Any]:
    """The settings that the hash is taken of, as plain data."""
    plain = {str(key): _plain(cfg, str(key)) for key in cfg if key not in IRRELEVANT}
    for task in ("membership", "exposure"):
        if plain.get("task") != task:
            plain.pop(task, None)  # nobody else is asked about
    return {**plain, "task": "run"} if plain.get("task") in STAGES else plain


def _plain(cfg: DictConfig, key: str) -> Any:
    # Key by key, in place: interpolations reach the rest, and the hash is not asked for while Hydra
    # computes it.
    if OmegaConf.is_missing(cfg, key):
        return "???"
    value = cfg[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def digest(plain: Any) -> str:
    """A hash of plain data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:12]
