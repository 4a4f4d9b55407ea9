"""The jobs that overrides ask for, counted before they are written out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from simudy.errors import SimudyError

MOST = 100_000  # jobs of one sweep: Hydra writes them all out before the first begins


def refuse_too_many(argv: Sequence[str]) -> None:
    """Whether a command line asks for more jobs than anyone can mean.

    Raises:
        SimudyError: it does.
    """
    if not {"-m", "--multirun"} & set(argv):
        return
    words = [word for word in argv if "=" in word and not word.startswith("-")]
    if count(words) > MOST:
        raise SimudyError(f"this sweep has more than {MOST:,} jobs: sweep over fewer values")


def count(words: Sequence[str]) -> int:
    """How many combinations overrides have, up to a little beyond ``MOST``."""
    return math.prod(len(_values(override, MOST + 1)) for override in _parsed(words))


def combinations(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Each as overrides without a sweep, in the order in which Hydra launches them."""
    return itertools.product(*(_values(override, MOST) for override in _parsed(words)))


def _parsed(words: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(words))
    except HydraException:  # Hydra itself complains of what cannot be read
        return []


def _values(override: Override, limit: int) -> list[str]:
    key = override.get_key_element()
    if override.is_interval_sweep():  # a search chooses from it, one value a job
        return [override.input_line or key]
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    return [f"{key}={v}" for v in itertools.islice(override.sweep_string_iterator(), limit)]
