"""Distillation at equal memory: steps of the inner run, peak memory, and what the images are worth.

The unrolled run keeps every step, as ``higher`` and TorchOpt do; the other one keeps θ at every
eighth and differentiates forward over reverse.

python benchmarks/distil.py [--iterations 60] [--width 500]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import measure

from simudy import Direct, Mixed, Recompute, Reverse

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from distil import distil

CASES = {
    "unrolled, 4 steps": (4, Direct(), Reverse()),
    "unrolled, 16 steps": (16, Direct(), Reverse()),
    "Mixed and Recompute(8), 64 steps": (64, Recompute(every=8), Mixed()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--of", choices=CASES, help="print peak bytes and accuracy of one case")
    args = parser.parse_args()
    if args.of:
        steps, adjoint, gradient = CASES[args.of]
        how = {"adjoint": adjoint, "gradient": gradient}
        distil(2, 1, **how)  # warm
        found = []
        bytes_ = measure.peak_bytes(
            lambda: found.append(distil(steps, args.iterations, width=args.width, **how))
        )
        print(json.dumps([bytes_, found[0][1]]))
        return
    rows = []
    for name in CASES:
        given = ["--iterations", str(args.iterations), "--width", str(args.width), "--of", name]
        bytes_, right = measure.in_own_process(__file__, given)
        rows.append([name, f"{bytes_ / measure.MIB:.0f}", f"{right:.1%}"])
        print(rows[-1], file=sys.stderr, flush=True)
    print(measure.markdown(["inner run", "peak MiB", "unseen crops right"], rows))


if __name__ == "__main__":
    main()
