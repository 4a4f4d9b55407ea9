"""One run on several processes, as torchrun starts them: all compute, the first one writes, says
and is asked.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from simudy import stopping
from simudy.errors import SimudyError

# As gloo and NCCL put it, on the processes that are left.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL error")


def is_first() -> bool:
    """Whether this process writes and says: the first under torchrun, and any other."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"


@contextmanager
def apart(argv: Sequence[str]) -> Iterator[Sequence[str]]:
    """A process beside the first keeps Hydra's files in a directory that goes when it ends: by the
    clock, which names a run's directory, no two agree.
    """
    if is_first():
        yield argv
        return
    with tempfile.TemporaryDirectory() as own:
        yield [*argv, f"hydra.run.dir={own}"]


@contextmanager
def joined(parallel: str | None) -> Iterator[None]:
    """The processes know each other.

    Raises:
        SimudyError: torchrun did not start this, or did and nothing is to be shared.
    """
    started = "TORCHELASTIC_RUN_ID" in os.environ
    if not started and not parallel:
        yield
        return
    if not started:
        raise SimudyError(
            f"parallel={parallel} wants several processes: torchrun --nproc-per-node 2 -m simudy "
            f"parallel={parallel} …"
        )
    if not parallel:
        raise SimudyError(
            "torchrun started several processes of one run: add parallel=images, or steps"
        )
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    logging.disable(logging.NOTSET if is_first() else logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        dist.destroy_process_group()


def same(root: Path) -> Path:
    """The first process's run directory, for all."""
    if not _is_shared():
        return root
    import torch.distributed as dist

    given: list[Path] = [root]
    dist.broadcast_object_list(given, src=0)
    return given[0]


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process does what follows, then the others: they find what it wrote."""
    import torch.distributed as dist

    if _is_shared() and not is_first():
        dist.barrier()
    yield
    if _is_shared() and is_first():
        dist.barrier()


@contextmanager
def folder_of_own(root: Path) -> Iterator[Path]:
    """Where this process writes: the run's directory for the first; for another a copy of it, which
    goes when it ends. No step is taken before all have theirs, and so none is saved.
    """
    if not _is_shared() or is_first():
        yield root
        return
    with tempfile.TemporaryDirectory() as own:
        shutil.copytree(root, own, dirs_exist_ok=True)
        yield Path(own)


def agree_to_stop() -> None:
    """Where any process was asked to stop, all are."""
    if not _is_shared():
        return
    import torch
    import torch.distributed as dist

    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = torch.tensor(int(stopping.is_asked()), device=device)
    dist.all_reduce(asked)
    if asked:
        stopping.ask_to_stop()


def is_lost(error: BaseException) -> bool:
    """Whether another process ended in the middle of a sum."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


def _is_shared() -> bool:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    import torch.distributed as dist

    return dist.is_initialized()
