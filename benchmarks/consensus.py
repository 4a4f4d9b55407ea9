"""The consensus of several reconstructions, found once before a search begins: seconds of CPU and
peak memory.

python benchmarks/consensus.py [--starts 3 5] [--repeats 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import measure
import torch

from simudy.attack.consensus import consensus

SHAPES = {20: (3, 16, 16), 100: (3, 32, 32), 500: (3, 32, 32)}  # by number of images


def matching(n: int, starts: int) -> Callable[[], object]:
    """Noisy copies of the same images, each in an order of its own, ten classes."""
    torch.manual_seed(0)
    truth, labels = torch.randn(n, *SHAPES[n]), torch.arange(n) % 10
    orders = [torch.randperm(n) for _ in range(starts)]
    found = [truth[order] + 0.5 * torch.randn_like(truth) for order in orders]
    return lambda: consensus(found, [labels[order] for order in orders])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", nargs="*", type=int, default=[3, 5])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--peak-of", nargs=2, type=int, help="print the peak of one case, in bytes, and stop"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        run = matching(*args.peak_of)
        run()
        print(json.dumps(measure.peak_bytes(run)))
        return
    print(measure.markdown(["images", "starts", "time", "memory"], []), flush=True)
    cases = {f"{n} {starts}": matching(n, starts) for n in SHAPES for starts in args.starts}
    for case, seconds in measure.side_by_side(cases, repeats=args.repeats).items():
        n, starts = case.split()
        peak = measure.in_own_process(__file__, ["--peak-of", n, starts]) / measure.MIB
        print(f"| {n} | {starts} | {seconds * 1e3:.0f} ms | {peak:.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
