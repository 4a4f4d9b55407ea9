"""``config.yaml`` read back: plain data, which resolves nothing and names nothing on its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from simudy.app.settings.schema import Config, check_typed
from simudy.errors import SimudyError
from simudy.files import read_text
from simudy.trust import require_trusted, targets_of

REMEDY = "set hydra.run.dir to the directory of an earlier run"
_RESOLVER = re.compile(r"\$\{[^}]*:")


class _Loader(get_yaml_loader()):
    """Without aliases, of which a few lines can make gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def read_yaml(path: Path, remedy: str) -> Any:
    """A yaml file as plain data.

    Raises:
        SimudyError: it is missing or damaged.
    """
    try:
        return yaml.load(read_text(path, remedy), Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, SimudyError):
            raise
        raise SimudyError(f"{path} is damaged (no yaml): {remedy}") from error


def read_raw(path: Path) -> DictConfig:
    """The settings as they stand, to compare with others; nothing is made of them.

    Raises:
        SimudyError: the file is missing or damaged, or asks for values from elsewhere.
    """
    plain = read_yaml(path, REMEDY)
    if not isinstance(plain, dict):
        raise SimudyError(f"{path} is damaged (no mapping): {REMEDY}")
    if found := next((text for text in _texts(plain) if _RESOLVER.search(text)), None):
        raise SimudyError(
            f"{path} holds {found[:100]}, and nothing is resolved in a file that is read back: "
            "write the value there"
        )
    try:
        return OmegaConf.create(plain)
    except (OmegaConfBaseException, RecursionError, ValueError) as error:
        raise SimudyError(f"{path} is damaged (no settings): {REMEDY}") from error


def read_settings(path: Path, call: DictConfig) -> DictConfig:
    """The settings, checked like a command line, to run by.

    Args:
        call: the settings of this very call: classes that are not simudy's or torch's must be named
            here too.

    Raises:
        SimudyError: the file is missing or damaged, or names what nobody vouches for.
    """
    raw = read_raw(path)
    named = named_in(call)
    try:
        plain: Any = OmegaConf.to_container(raw, resolve=True)
        for key in ("tracker", "pruner"):  # who is told of a run is this call's to say
            plain[key] = call.get(key)
        for key, name in targets_of(plain):
            require_trusted(name, str(path), key, named=named)
        cfg = OmegaConf.merge(OmegaConf.structured(Config), plain)
    except OmegaConfBaseException as error:
        reason = (str(error).splitlines() or [""])[0]
        raise SimudyError(f"{path} is damaged ({reason}): {REMEDY}") from error
    check_typed(cfg, Config)  # type: ignore[arg-type]
    return cfg  # type: ignore[return-value]


def named_in(call: DictConfig) -> set[str]:
    """The classes that a call's settings name."""
    plain = OmegaConf.to_container(call, resolve=False)
    return {str(name) for _, name in targets_of(plain)}


def _texts(node: Any) -> Any:
    """All words in plain data, keys included."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node
