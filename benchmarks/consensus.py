"""The consensus of several reconstructions, found once before a search begins: seconds of CPU and peak memory.

python benchmarks/consensus.py [--starts 3 5] [--repeats 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import measure
import torch

from simudy.attack.consensus import consensus

SHAPES = {"20": (20, 3, 16, 16), "100": (100, 3, 32, 32), "500": (500, 3, 32, 32)}


def matching(n: str, starts: int) -> Callable[[], object]:
    """Noisy copies of the same images, each in an order of its own, ten classes."""
    torch.manual_seed(0)
    truth, labels = torch.randn(SHAPES[n]), torch.arange(int(n)) % 10
    orders = [torch.randperm(len(truth)) for _ in range(starts)]
    found = [truth[order] + 0.5 * torch.randn_like(truth) for order in orders]
    return lambda: consensus(found, [labels[order] for order in orders])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", nargs="*", type=int, default=[3, 5])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak-of", nargs=2, help="print the peak of one case, in bytes, and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        run = matching(args.peak_of[0], int(args.peak_of[1]))
        run()
        print(json.dumps(measure.peak_bytes(run)))
        return
    print(measure.markdown(["images", "starts", "time", "memory"], []), flush=True)
    cases = {(n, starts): matching(n, starts) for n in SHAPES for starts in args.starts}
    seconds = measure.side_by_side({str(case): run for case, run in cases.items()}, repeats=args.repeats)
    for n, starts in cases:
        peak = measure.in_own_process(__file__, ["--peak-of", n, str(starts)]) / measure.MIB
        print(f"| {n} | {starts} | {seconds[str((n, starts))] * 1e3:.0f} ms | {peak:.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
