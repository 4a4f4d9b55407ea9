"""One line for a person out of an exception raised by a wrong command or a wrong file."""

from __future__ import annotations

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from simudy.app.settings.unknown import unknown_setting
from simudy.errors import SimudyError

EXPECTED = (SimudyError, HydraException, OmegaConfBaseException)


def one_line(error: BaseException) -> str:
    """What is wrong and what to do about it."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        return _unknown_key(cause)
    if isinstance(cause, OmegaConfBaseException):
        reason = str(cause).splitlines()[0]
        return f"{cause.full_key}: {reason}" if cause.full_key else reason
    return on_one_line(str(error).split("Config search path:")[0])


def on_one_line(words: str) -> str:
    """On one line."""
    return " ".join(words.split())


def _unknown_key(error: OmegaConfBaseException) -> str:
    key, parent = str(error.key), error.parent_node
    full = str(error.full_key or key)
    if not isinstance(parent, DictConfig) or parent._is_none():
        return unknown_setting(full, [])
    above = full.removesuffix(key)
    words = unknown_setting(full, [f"{above}{name}" for name in parent])
    if "_target_" not in parent:
        return words
    return f"{words} (+{full}=… hands it to the _target_, if that takes it)"
