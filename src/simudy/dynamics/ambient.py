"""What surrounds a computation without being its input: autocast, and other threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import RLock

import torch

# torch counts the levels of forward mode, and knows of one recording, by process: not by thread.
one_thread = RLock()


class OneThread:
    """A lock of an object's own: copied or pickled with it, it is a new one."""

    def __init__(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[OneThread], tuple[()]]:
        return OneThread, ()


def ambient_autocast() -> Callable[[], AbstractContextManager[object]]:
    """Enters anew, whenever called, the autocast that is on (or off) now, in this thread."""
    states = autocast_states()
    return lambda: _within(states)


def autocast_states() -> tuple[tuple[str, torch.dtype, bool], ...]:
    """Device, dtype and whether autocast is on there now, in this thread."""
    return tuple(
        (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        for device in sorted(_devices())
    )


def no_autocast() -> AbstractContextManager[object]:
    """Operations run as they are called."""
    return _within([(device, torch.get_autocast_dtype(device), False) for device in _devices()])


@contextmanager
def _within(states: Sequence[tuple[str, torch.dtype, bool]]) -> Iterator[None]:
    with ExitStack() as stack:
        for device, dtype, enabled in states:
            if enabled or torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
        yield


def _devices() -> set[str]:
    accelerator = torch.accelerator.current_accelerator(check_available=False)
    return {"cpu"} | ({accelerator.type} if accelerator is not None else set())
