"""What sharing out over processes costs and saves: ``python benchmarks/sharded.py``.

A network's outer gradient through four steps of SGD, on one process and on several of one thread
each. *Strong*: the same on more processes; *weak*: as many images for each, or with ``--share
steps`` as many steps of an anchored path. Beside the times, the bytes that are sent, each step or
each path, from which other networks of wires can be told.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from measure import markdown

from simudy import SGD, Direct, Reverse, Sharded, StatelessModel, simulate
from simudy.attack.methods.path import Path as Points
from simudy.attack.methods.path import end_of_shares
from simudy.victim.models import ResNet

STEPS = 4


def outer_gradient(n: int, width: int, steps: int, share: str) -> Callable[[], None]:
    """A function that computes the gradient by ``n`` images through the run."""
    torch.manual_seed(0)
    model = StatelessModel(ResNet(shape=(3, 32, 32), classes=10, width=width).eval())
    images = torch.randn(n, 3, 32, 32, requires_grad=True)
    batches, rules = [(images, torch.arange(n) % 10)] * steps, [SGD(lr=0.01)] * steps
    path, grads = Points([model.params] * steps), Reverse().of(model.loss)

    def run() -> None:
        if share == "images":
            how = Sharded(Reverse())
            end = simulate(model.loss, model.params, batches, rules, gradient=how)
        else:
            grad = partial(path.grad, grads)
            end = end_of_shares(grad, model.params, batches, rules, adjoint=Direct())
        torch.autograd.grad(end["stem.0.weight"].square().sum(), images)

    return run


def measure(options: argparse.Namespace) -> None:
    """In one of the processes: the median of wall-clock seconds, printed by the first."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    n, steps = sizes(options, ranks if options.weak else 1)
    run, taken = outer_gradient(n, options.width, steps, options.share), []
    for _ in range(options.repeats + 1):  # the first warms up
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    if rank == 0:
        print(json.dumps(statistics.median(taken[1:])))
    dist.destroy_process_group()


def sizes(options: argparse.Namespace, times: int) -> tuple[int, int]:
    """Images and steps, ``times`` as many of what is shared out."""
    return (
        (options.images * times, STEPS)
        if options.share == "images"
        else (options.images, STEPS * times)
    )


def on(processes: int, words: list[str]) -> float:
    """Seconds on so many processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    found = subprocess.run(
        [*launch, str(processes), __file__, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(found.stdout.strip().splitlines()[-1])


def sent(width: int, n: int) -> str:
    """Megabytes that are sent on the way there, and on the way back."""
    model = ResNet(shape=(3, 32, 32), classes=10, width=width)
    weights = 4 * sum(p.numel() for p in model.parameters()) / 1e6
    return f"{weights:.1f} and {weights + 4 * n * 3 * 32 * 32 / 1e6:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--share", choices=["images", "steps"], default="images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weak", action="store_true")
    options = parser.parse_args()
    if "RANK" in os.environ:
        measure(options)
        return
    each = "a step" if options.share == "images" else "in all"
    head = ("scaling", "processes", "images", "steps", "seconds", "relative", f"MB {each}")
    rows: list[list[str]] = []
    for weak in (False, True):
        words = ["--images", f"{options.images}", "--width", f"{options.width}"]
        words += ["--repeats", f"{options.repeats}", "--share", options.share]
        words += ["--weak"] if weak else []
        seconds = {count: on(count, words) for count in options.processes}
        base = seconds[options.processes[0]]
        for count, taken in seconds.items():
            n, steps = sizes(options, count if weak else 1)
            times = [f"{taken:.2f}", f"{taken / base:.2f}", sent(options.width, n)]
            rows.append(["weak" if weak else "strong", f"{count}", f"{n}", f"{steps}", *times])
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
