"""What a prior adds to an outer iteration, its value and slope, and one step of the denoiser's own
training: seconds of CPU and peak memory.

python benchmarks/priors.py [--images 20 100] [--size 32] [--repeats 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import measure
import torch

from simudy import colour_variation, total_variation
from simudy.attack.prior.denoiser import Denoiser, Red, fit

CASES = ("tv", "colour", "denoiser", "denoiser's training, a step")


def case(name: str, n: int, size: int) -> Callable[[], object]:
    """On ``n`` images."""
    torch.manual_seed(0)
    images, denoiser = torch.randn(n, 3, size, size), Denoiser(3)
    if name == CASES[-1]:
        return lambda: fit(denoiser, images, steps=1, seed=0)
    red = Red(lambda: denoiser, sigma=0.3)
    term = {"tv": total_variation, "colour": colour_variation, "denoiser": red}[name]
    images.requires_grad_()
    return lambda: torch.autograd.grad(term(images), images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", nargs="*", type=int, default=[20, 100])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak-of", nargs=2, help="print one case's peak, in bytes, and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        name, n = args.peak_of
        run = case(name, int(n), args.size)
        run()
        print(json.dumps(measure.peak_bytes(run)))
        return
    print(measure.markdown(["prior", "images", "time", "memory"], []), flush=True)
    for n in args.images:
        cases = {name: case(name, n, args.size) for name in CASES}
        for name, seconds in measure.side_by_side(cases, repeats=args.repeats).items():
            asked = ["--size", str(args.size), "--peak-of", name, str(n)]
            peak = measure.in_own_process(__file__, asked) / measure.MIB
            print(f"| {name} | {n} | {seconds * 1e3:.1f} ms | {peak:.1f} MiB |", flush=True)


if __name__ == "__main__":
    main()
