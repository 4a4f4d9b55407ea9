"""What the library says of arguments, in the settings that a person typed: ``Recipe(epochs=3)`` is
``recipe.epochs=3``.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from simudy.app.settings.meaning import SHARED, conf
from simudy.trust import targets_of

# A class or function with arguments by name; a value of `…` leaves open what to give.
_VALUE = r"(?:\[[^][]*\]|\([^()]*\)|[^][(),]+)"
_ARGUMENT = re.compile(rf"(\w+)=({_VALUE})")
MENTION = re.compile(rf"\b([A-Za-z_]\w*)\((\w+={_VALUE}(?:, \w+={_VALUE})*)\)")
# Where the settings of a class stand, beside those that a `_target_` names.
PLACES = {
    "Recipe": "recipe",
    "Outer": "outer",
    "Evidence": "evidence",
    "evidence_from_weights": "evidence",
    "Method": "attack",
    "Simudy": "attack",
    "Source": "data",
    "Pretraining": "victim.pretrain",
}
ELSEWHERE = {
    "Checkpoint.step": "evidence.checkpoint_steps",
    "evenly.count": "victim.checkpoints",
    "Recipe.optimizer": "inner",
    "StatelessModel.criterion": "recipe.loss._target_",
    "evidence_from_weights.mode": "victim.mode",
}
PHRASES = {
    "call module.eval()": "set victim.mode=eval",
    "use Simudy()": "set attack=simudy",
    "use Reverse()": "set gradient=reverse",
    "use Direct() or Recompute()": "set adjoint=direct or adjoint=recompute",
    "Anchored(shared=True)": "parallel=steps",
}
_WORDS = {"True": "true", "False": "false", "None": "null"}


def in_settings(words: str, cfg: DictConfig) -> str:
    """A message of the library with settings in place of arguments; what no setting fills stays.

    Args:
        cfg: the settings of the run.
    """
    places = {**_rules(), **_of_targets(cfg), **PLACES}

    def settings(found: re.Match[str]) -> str:
        name, arguments = found.groups()
        if name not in places and not any(key.startswith(f"{name}.") for key in ELSEWHERE):
            return found[0]
        each = _ARGUMENT.findall(arguments)
        return ", ".join(_setting(name, key, value, places, cfg) for key, value in each)

    for phrase, setting in PHRASES.items():
        words = words.replace(phrase, setting)
    return MENTION.sub(settings, words)


@cache
def _rules() -> dict[str, str]:
    """The rules there are, which a file may tell of where the settings name another."""
    files = (conf() / "inner").glob("*.yaml")
    named = (re.search(r"_target_: \S+\.(\w+)", file.read_text()) for file in files)
    return {found[1]: "inner" for found in named if found}


def _of_targets(cfg: DictConfig) -> dict[str, str]:
    """Where each class that the settings name stands, by its last name."""
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    found: dict[str, str] = {}
    for key, target in targets_of(plain):
        found.setdefault(str(target).rpartition(".")[2], key.rpartition("._target_")[0])
    return found


def _setting(name: str, key: str, value: str, places: dict[str, str], cfg: DictConfig) -> str:
    where = ELSEWHERE.get(f"{name}.{key}") or _shared(f"{places.get(name, name)}.{key}", cfg)
    value = _WORDS.get(value, value.strip("'\""))
    if where == "inner":  # the names of its files
        value = value.lower()
    return where if value == "…" else f"{where}={value}"


def _shared(key: str, cfg: DictConfig) -> str:
    """The setting that fills in a field of the method, unless it was given for the method alone."""
    place, _, field = key.partition(".")
    if place != "attack" or field not in SHARED or OmegaConf.select(cfg, key) is not None:
        return key
    return SHARED[field]
