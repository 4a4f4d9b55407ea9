"""Time and peak memory of one hyper-gradient against the length of the run, by adjoint: softmax
regression of 1000 × 100 weights with a decay in its loss, which is strongly convex, by SGD with
momentum; the gradient of the end by the decay and the images.

The times take turns in one process; each peak comes from a process of its own (see ``measure``).

python benchmarks/long_runs.py [--steps 16 64 256] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import measure
import torch

from simudy import SGD, Direct, Implicit, Recompute, Truncated, simulate
from simudy.dynamics.adjoint import Adjoint

ADJOINTS: dict[str, Any] = {
    "Direct()": lambda steps: Direct(),
    "Recompute(√steps)": lambda steps: Recompute(int(steps**0.5)),
    "Truncated(last=8)": lambda steps: Truncated(8),
    # The shorter runs have not converged; their gradient costs the same.
    "Implicit()": lambda steps: Implicit(stationary=1.0, near=10.0),
}


def theta_bytes() -> int:
    return 4 * 1000 * 100


def loss(params: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
    images, labels, decay = batch
    logits = images @ params["w"]
    return torch.nn.functional.cross_entropy(logits, labels) + decay * params["w"].square().sum()


def hypergradient(adjoint: Adjoint, steps: int) -> tuple[torch.Tensor, ...]:
    """By the images and the decay."""
    torch.manual_seed(0)
    images = torch.randn(20, 1000).div(30).requires_grad_()
    decay = torch.tensor(0.1, requires_grad=True)
    data = [(images, torch.arange(20), decay)] * steps
    start = {"w": torch.zeros(1000, 100)}
    end = simulate(loss, start, data, SGD(1.0, 0.5), adjoint=adjoint)
    return torch.autograd.grad(end["w"].sin().sum(), (images, decay))


def peak(name: str, steps: int) -> int:
    """Bytes, in a process of its own."""
    return measure.in_own_process(__file__, ["--peak-of", name, "--steps", str(steps)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", nargs="*", type=int, default=[16, 64, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-of", choices=ADJOINTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak_of:
        (steps,), make = args.steps, ADJOINTS[args.peak_of]
        hypergradient(make(steps), 2 * len(ADJOINTS))
        print(json.dumps(measure.peak_bytes(lambda: hypergradient(make(steps), steps))))
        return
    rows = {name: [name] for name in ADJOINTS}
    for steps in args.steps:
        cases = {n: lambda m=m, s=steps: hypergradient(m(s), s) for n, m in ADJOINTS.items()}
        for name, seconds in measure.side_by_side(cases, repeats=args.repeats).items():
            mib = peak(name, steps) / measure.MIB
            rows[name].append(f"{1000 * seconds:.0f} ms, {mib:.1f} MiB")
    print(f"|θ| = {theta_bytes() / measure.MIB:.2f} MiB")
    print(measure.markdown(["adjoint", *(f"{n} steps" for n in args.steps)], list(rows.values())))


if __name__ == "__main__":
    main()
