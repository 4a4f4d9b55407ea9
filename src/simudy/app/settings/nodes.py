"""Nodes with a ``_target_`` as a person means them: cleared of the options of a target that was
replaced, on the command line or in an experiment's file, and with ``betas`` written out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from simudy.app.settings import meaning
from simudy.errors import SimudyError
from simudy.plain import flatten

_COMMON = ("inner", "recipe", "n")  # the attack's guesses, whatever its method
_PAIR = ("beta1", "beta2")


def resolve_targets(
    cfg: DictConfig, overrides: Sequence[str], hydra: DictConfig | None = None
) -> DictConfig:
    """A node whose ``_target_`` was replaced keeps only what was said of the new one.

    Args:
        overrides: of the command line.
        hydra: Hydra's own settings, which know the files that were chosen.
    """
    cfg = cfg.copy()
    said = [*written(hydra), [word.split("=")[0].lstrip("+~") for word in overrides]]
    for path, kept in _replaced(said).items():
        node = OmegaConf.select(cfg, path)
        if not isinstance(node, DictConfig):
            continue
        with open_dict(node):
            for key in [key for key in node if key not in kept and key not in _COMMON]:
                node.pop(key)
    write_out_betas(cfg)
    return cfg


def _replaced(said: Sequence[Sequence[str]]) -> dict[str, set[str]]:
    """Nodes that got another ``_target_``, and the keys said of it: there, and in what came later.

    Args:
        said: dotted keys, by file and then those of the command line.
    """
    found: dict[str, set[str]] = {}
    for keys in said:
        found |= {k.removesuffix("._target_"): set() for k in keys if k.endswith("._target_")}
        for path, kept in found.items():
            inside = (key[len(path) + 1 :] for key in keys if key.startswith(f"{path}."))
            kept |= {key.split(".")[0] for key in inside}
    return found


def written(hydra: DictConfig | None) -> Iterator[list[str]]:
    """The keys that each of the chosen files about the whole run sets: experiments, sweeps."""
    if hydra is None:
        return
    sources = [_folder(source) for source in hydra.runtime.config_sources]
    for group, option in hydra.runtime.choices.items():
        for folder in filter(None, sources):
            path = folder / str(group) / f"{option}.yaml"
            if path.is_file() and "@package _global_" in path.read_text():
                yield from _keys(path)
                break


def _keys(path: Path) -> Iterator[list[str]]:
    """Of a file, after those of the file of the same folder that it starts from."""
    base = path.with_name(f"{meaning.based_on(path)}.yaml")
    if base.is_file() and base != path:
        yield from _keys(base)
    said: Any = yaml.safe_load(path.read_text()) or {}
    yield [str(key) for key in flatten({k: v for k, v in said.items() if k != "defaults"})]


def _folder(source: Mapping[str, Any]) -> Path | None:
    """Where a source of Hydra's lies, as far as it is one with our or a person's files."""
    if source["provider"] == "hydra" or source["schema"] not in ("pkg", "file"):
        return None
    return meaning.conf() if source["schema"] == "pkg" else Path(source["path"])


def write_out_betas(cfg: DictConfig) -> None:
    """``betas: [β1, β2]``, as torch has it, is ``beta1`` and ``beta2`` of our rules.

    Raises:
        SimudyError: it is no pair of numbers, or stands beside one of the two.
    """
    rule = OmegaConf.select(cfg, "inner")
    if isinstance(rule, DictConfig):
        _write_out(rule, "inner", rule)
        if isinstance(guess := OmegaConf.select(cfg, "attack.inner"), DictConfig):
            _write_out(guess, "attack.inner", guess if "_target_" in guess else rule)


def _write_out(node: DictConfig, where: str, rule: DictConfig) -> None:
    for key, value in list(node.items()):
        if isinstance(value, DictConfig):
            _write_out(value, f"{where}.{key}", value)
    if "betas" not in node or not _takes_pair(rule):
        return
    with open_dict(node):
        betas = node.pop("betas")
        if betas is None:
            return
        if not OmegaConf.is_list(betas) or len(betas) != 2:
            raise SimudyError(f"{where}.betas={betas}: give two numbers, as in [0.9,0.999]")
        if any(node.get(name) is not None for name in _PAIR):
            raise SimudyError(f"{where} says betas and one of the two: leave one of them out")
        node.update(zip(_PAIR, betas, strict=True))


def _takes_pair(node: DictConfig) -> bool:
    known = meaning.documented(str(node.get("_target_")))
    return set(_PAIR) <= known.keys() and "betas" not in known
