"""Which settings a person typed, where what stands in their files would else fill them in."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

_FILLED = ("epochs", "scheduler", "scheduler_per")


def typed(cfg: DictConfig) -> set[str]:
    """Of the recipe, by name: ``inner._target_``, ``inner.lr``, ``recipe.epochs``, …

    An experiment's file counts as typed; without a command line, so does everything.
    """
    rule = OmegaConf.to_container(cfg.inner, resolve=True)
    held = {f"inner.{key}" for key, value in rule.items() if value is not None}  # type: ignore
    whole = held | {f"recipe.{key}" for key in _FILLED}
    if not HydraConfig.initialized() or HydraConfig.get().runtime.choices.get("experiment"):
        return whole
    words = {word.lstrip("+~").partition("=")[0] for word in HydraConfig.get().overrides.task}
    covered = {key for key in whole if any(_covers(word, key) for word in words)}
    return covered | (held - {"inner._target_"})


def _covers(word: str, key: str) -> bool:
    """Whether setting ``word`` sets ``key``, a part of it, or, by its group, its class."""
    chosen = word == "inner" and key == "inner._target_"
    return chosen or word == key or word.startswith(f"{key}.")
