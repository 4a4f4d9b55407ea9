"""A person's wish to stop, as a flag: signal handlers set it, and every loop looks at it between
two steps, where nothing is half done.
"""

from __future__ import annotations

_asked = False


def ask_to_stop() -> None:
    """From the next step on, no more."""
    global _asked
    _asked = True


def forget() -> None:
    """Nobody has asked: a new command begins."""
    global _asked
    _asked = False


def is_asked() -> bool:
    """Whether somebody asked."""
    return _asked


def check() -> None:
    """Stop here, if somebody asked.

    Raises:
        KeyboardInterrupt: somebody did.
    """
    if _asked:
        raise KeyboardInterrupt
