"""How benchmarks measure: times side by side in one process, peak memory each in a process of its
own.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

MIB = 2**20


def side_by_side(
    cases: Mapping[str, Callable[[], Any]], *, repeats: int, device: str = "cpu"
) -> dict[str, float]:
    """Median seconds of each case, all taking turns, so that what else the machine does meets them
    alike.

    With one thread on a CPU these are seconds of that CPU, which others on the machine cannot
    stretch.
    """
    _keep_freed_pages()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for run in cases.values():
        _timed(run, device)  # warm
    for turn in range(repeats):
        order = list(cases) if turn % 2 == 0 else list(reversed(cases))
        for name in order:
            seconds[name].append(_timed(cases[name], device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes(run: Callable[[], Any], *, device: str = "cpu") -> int:
    """Most memory that ``run`` takes on top of what is held when it starts. Call once per process.

    CUDA: as torch counts it. CPU: resident memory as the kernel counts it, so import and warm up
    before.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        before = _reset_peak()
    run()
    return (torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")) - before


def in_own_process(script: str, arguments: Sequence[str]) -> Any:
    """What ``script`` prints as the last line of its output, as JSON.

    glibc gives large tensors pages of their own only until one is freed; from then on they come
    from the heap, whose holes count as resident. A fixed threshold, below all but the smallest
    tensors, keeps it so, and the figures about the tensors.
    """
    command = [sys.executable, script, *arguments]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MIB // 16)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _keep_freed_pages() -> None:
    """Let glibc hand no page back, so that no case pays for those its predecessor gave away."""
    libc, mmap_max, trim_threshold = ctypes.CDLL(None), -4, -1
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def _timed(run: Callable[[], Any], device: str) -> float:
    _synchronise(device)
    clock = (
        time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    )
    start = clock()
    run()
    _synchronise(device)
    return clock() - start


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _reset_peak() -> int:
    """Resident bytes now, the kernel's record of the peak set back to them (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
