"""One line for a person out of an exception: of a wrong command, a wrong file, a full disk."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from simudy.app.processes import is_lost
from simudy.app.settings.unknown import unknown_setting
from simudy.errors import SimudyError

FORESEEN = (SimudyError, HydraException, OmegaConfBaseException, OSError, UnicodeError)

_ELSEWHERE = "set hydra.run.dir to a directory you may write in"
_OF_SYSTEM = {
    errno.ENOSPC: "the disk is full: free some space, and the same command goes on",
    errno.EDQUOT: "your quota is used up: free some space, and the same command goes on",
    errno.EFBIG: "the limit on the size of files is too low: raise it (ulimit -f)",
    errno.EROFS: f"the file system is read-only: {_ELSEWHERE}",
    errno.EACCES: f"permission denied: change it, or {_ELSEWHERE}",
    errno.EPERM: f"permission denied: change it, or {_ELSEWHERE}",
    errno.EISDIR: "it is a directory, and a file belongs there: move it away",
    errno.ENOTDIR: "a file is where a directory belongs: move it away",
    errno.EEXIST: "a file is where a directory belongs: move it away",
    errno.ENAMETOOLONG: "the name is too long: shorten it",
    errno.ENOENT: "it is not there: give one that is",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ELOOP: "its links lead in a circle: mend them",
}
_AMBIGUOUS = re.compile(r"Ambiguous value for argument '([^=]+)=(.*)'\n")
_RAN_AWAY = ("LinAlgError", "_LinAlgError")  # torch's, without importing it
_OUT_OF_MEMORY = ("allocate memory", "out of memory", "invalid buffer size", "allocat")


def one_line(error: BaseException, *, foreseen: tuple[type[Exception], ...] = FORESEEN) -> str:
    """What is wrong and what to do about it; of what nobody foresaw, its name and how to see more.

    Args:
        foreseen: exceptions whose own words will do.
    """
    for link in _chain(error):
        if isinstance(link, SimudyError):
            return on_one_line(str(link))
    for link in _chain(error):
        if isinstance(link, OSError):
            return on_one_line(_of_system(link))
        if is_out_of_memory(link):
            return "out of memory: use fewer or smaller images, a narrower model or smaller batches"
        if is_lost(link):
            return "another process of this run ended: the same command goes on from its checkpoint"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        return _unknown_key(cause)
    if isinstance(cause, OmegaConfBaseException):
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        return f"{cause.full_key}: {reason}" if cause.full_key else reason
    if found := _AMBIGUOUS.search(str(error)):
        return (
            f"{found[1]}={found[2]}: a comma separates values to sweep over: add -m, or where it "
            f"is part of the value, quote it twice: \"{found[1]}='{found[2]}'\""
        )
    if isinstance(error, UnicodeError):
        return on_one_line(f"not in UTF-8 ({error}): write the text in UTF-8")
    if type(error).__name__ in _RAN_AWAY:
        return "numbers grew beyond what can be computed: use smaller step sizes, decays or weights"
    if isinstance(error, foreseen):
        return on_one_line(str(error).split("Config search path:")[0])
    kind = on_one_line(f"{type(error).__name__}: {error}")
    return f"{kind} (not foreseen: SIMUDY_DEBUG=1 shows where; please report it)"


def on_one_line(words: str) -> str:
    """On one line."""
    return " ".join(words.split())


def is_out_of_memory(error: BaseException) -> bool:
    """Of any library: they name it in their own ways."""
    words = str(error).lower()
    ours = isinstance(error, RuntimeError) and any(part in words for part in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or ours


def debugging() -> bool:
    """Whether a developer asked to see tracebacks."""
    return bool(os.environ.get("SIMUDY_DEBUG"))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it came of."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _of_system(error: OSError) -> str:
    if error.filename is None and _is_nowhere():
        return "the working directory was removed: change to one that is there"
    where = f"{error.filename}: " if error.filename else ""
    known = _OF_SYSTEM.get(error.errno or 0)
    return where + (known or f"{error.strerror or error}: mend it and run again")


def _is_nowhere() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


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
