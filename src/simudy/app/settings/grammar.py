"""Words of the command line that Hydra's grammar does not take, written so that it does."""

from __future__ import annotations

import re
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

_SPECIAL = re.compile(r"([\\()\[\]{}:=, \t])")  # in keys these want a backslash

_WORDS = ("distance.",)  # settings that are a word, and may be a node


def in_grammar(word: str) -> str:
    """``key=value`` as Hydra reads it.

    Paths with ``=`` or umlauts are quoted; mappings and lists in YAML, whose keys may be patterns
    as ``"0.weight[1]"``, are written with escapes. What is neither stays, for Hydra to refuse. A
    node in place of a word, as in ``distance._target_=…``, is added to it.
    """
    word = f"+{word}" if word.startswith(_WORDS) else word
    key, is_override, value = word.partition("=")
    if not is_override or word.startswith("-") or _parses(word):
        return word
    rewritten = f"{key}={_written(_yaml(value))}"
    return rewritten if _parses(rewritten) else word


def _parses(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _yaml(text: str) -> Any:
    """A mapping or a list, or the text itself."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, (dict, list)) else text


def _escaped(key: str) -> str:
    return _SPECIAL.sub(r"\\\1", key)


def _written(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{_escaped(str(k))}: {_written(v)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    quoted = re.sub(r"(\\*)'", r"\1\1\\'", str(value))
    return f"'{quoted}'"
