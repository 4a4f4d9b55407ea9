"""Where factored weights pay: a grid of rows, widths and steps, dense and factored side by side.

python benchmarks/factored.py [--rows 4 20 64] [--widths 128 256 512 1024] [--steps 4 16 64]
    [--memory]

One outer iteration: a perceptron of two square layers and a head is trained, and the distance of
its displacement from a dense one is differentiated by the images. Time of each way and, with
``--memory``, its peak; what ``auto`` takes; and the ratio of that to the better of the two.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from itertools import product

import torch
from measure import in_own_process, markdown, peak_bytes, side_by_side
from torch import Tensor, nn

from simudy import SGD, Factored, Reverse, StatelessModel, cosine, simulate
from simudy.dynamics import tree
from simudy.dynamics.gradient import Gradient

WAYS: dict[str, Gradient] = {"dense": Reverse(), "factored": Factored(layers="all")}
LIMIT = 1.5e10  # multiply-adds of the dense way, beyond which a case takes too long


def outer(rows: int, width: int, steps: int, gradient: Gradient) -> Callable[[], Tensor]:
    model = perceptron(width)
    target = tree.map(torch.randn_like, model.params)
    images, labels = torch.randn(rows, width, requires_grad=True), torch.arange(rows) % 10

    def run() -> Tensor:
        batches = [(images, labels)] * steps
        end = simulate(model.loss, model.params, batches, SGD(lr=0.01), gradient=gradient)
        distance = cosine(tree.sub(end, model.params), target)
        return torch.autograd.grad(distance, images)[0]

    return run


def perceptron(width: int) -> StatelessModel:
    torch.manual_seed(0)
    first, second = nn.Linear(width, width), nn.Linear(width, width)
    layers = (first, nn.Tanh(), second, nn.Tanh(), nn.Linear(width, 10))
    return StatelessModel(nn.Sequential(*layers))


def taken(rows: int, width: int, steps: int) -> str:
    """What auto does with the square layers."""
    model = perceptron(width)
    batches = [(torch.randn(rows, width), torch.arange(rows) % 10)] * steps
    chosen = Factored().chosen(model.loss, model.params, batches)
    return "factored" if "0.weight" in chosen else "dense"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 20, 64])
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(json.dumps(_peak(*options.peak)))
        return
    lines = []
    for rows, width, steps in product(options.rows, options.widths, options.steps):
        if 18 * rows * steps * width**2 <= LIMIT:
            lines.append(_line(rows, width, steps, options))
            print(lines[-1], file=sys.stderr, flush=True)
    head = ["rows", "width", "steps", "dense", "factored", "auto", "of the better"]
    print(markdown([*head, *(["MiB dense", "MiB factored"] if options.memory else [])], lines))


def _line(rows: int, width: int, steps: int, options: argparse.Namespace) -> list[str]:
    runs = {name: outer(rows, width, steps, way) for name, way in WAYS.items()}
    seconds, auto = side_by_side(runs, repeats=options.repeats), taken(rows, width, steps)
    line = [str(rows), str(width), str(steps), *(f"{s * 1e3:.1f} ms" for s in seconds.values())]
    line += [auto, f"{seconds[auto] / min(seconds.values()):.2f}"]
    if options.memory:
        sizes = [str(x) for x in (rows, width, steps)]
        peaks = [in_own_process(__file__, ["--peak", name, *sizes]) for name in WAYS]
        line += [f"{peak / 2**20:.0f}" for peak in peaks]
    return line


def _peak(name: str, rows: str, width: str, steps: str) -> int:
    outer(2, 8, 2, WAYS[name])()  # warm
    return peak_bytes(outer(int(rows), int(width), int(steps), WAYS[name]))


if __name__ == "__main__":
    main()
