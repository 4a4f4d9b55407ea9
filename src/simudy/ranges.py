"""Which values a number may take, said once, beside its type: ``lr: Annotated[float, POSITIVE]``.

The check of settings (``plain.py``), its messages and the docs all read the same declaration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Args:
        low, high: its ends.
        above, below: leave ``low``, or ``high``, itself out.

    Example:
        >>> 0 in Range(0, 1, above=True), str(Range(0, 1, below=True))
        (False, 'from 0 to below 1')
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under

    def __str__(self) -> str:
        start = f"above {_figure(self.low)}" if self.above else f"{_figure(self.low)} or more"
        end = f"below {_figure(self.high)}" if self.below else f"at most {_figure(self.high)}"
        if math.isinf(self.high):
            return start
        if math.isinf(self.low):
            return end
        if self.above:
            return f"{start} and {end}"
        return f"from {_figure(self.low)} to {'below ' if self.below else ''}{_figure(self.high)}"


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


@dataclass(frozen=True)
class Length:
    """How many entries a list may have."""

    low: int = 0
    high: int = 10**6

    def __contains__(self, count: int) -> bool:
        return self.low <= count <= self.high

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low} or more"


MEASURED = Range()  # a figure that came out, NaN and infinity included
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, above=True)
FRACTION = Range(0, 1)
SHARE = Range(0, 1, above=True)  # of a whole, that is not nothing
DECAY = Range(0, 1, below=True)  # of a running mean: at 1 nothing new would ever count
COUNT = Range(1, 10**9)
NUMBER_OF = Range(0, 10**9)
DUMMIES = Range(1, 10**6)  # to reconstruct at once
SEED = Range(0, 2**63 - 1)  # what torch's generators take
SIDE = Range(1, 4096)  # pixels along a picture
WIDTH, DEPTH = Range(1, 10**6), Range(0, 1000)  # of a network
