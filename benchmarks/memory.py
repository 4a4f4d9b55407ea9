"""Peak memory against the number of simulated steps: narrow ResNet-18 (width 16), 20 images of
32×32.

Bounds: the peak at 64 steps is at most the peak at 8, plus what must be kept of the steps between,
plus 10 %: with Direct + Mixed 56 times |θ|, with Recompute(8) 7 times, one for each segment. Each
figure comes from a fresh process (see ``measure``).

python benchmarks/memory.py [--steps 8 16 32 64] [--device cpu]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import measure
import peers

CURVES = {
    "Direct, Reverse": "simudy Reverse Direct",
    "Direct, Mixed": "simudy Mixed Direct",
    "Recompute(8), Reverse": "simudy Reverse Recompute",
    "Recompute(8), Mixed": "simudy Mixed Recompute",
}
STEPS_PER_THETA = {
    "Direct, Mixed": 1,
    "Recompute(8), Reverse": 8,
    "Recompute(8), Mixed": 8,
}  # each keeps one θ
CASE = "conv32"


def theta_bytes() -> int:
    """|θ|: bytes of one set of parameters."""
    return sum(p.numel() * p.element_size() for p in peers.network(CASE).parameters())


def curve(method: str, steps: Sequence[int], *, device: str = "cpu") -> dict[int, int]:
    """Peak bytes at each number of steps."""
    how = ["--cases", CASE, "--device", device, "--peak-of", method]
    return {n: measure.in_own_process(peers.__file__, [*how, "--steps", str(n)]) for n in steps}


def bound(name: str, peaks: dict[int, int]) -> float | None:
    """What the peak at the last number of steps may be, given the one at the first; None where
    nothing is promised.
    """
    first, last = min(peaks), max(peaks)
    if name not in STEPS_PER_THETA:
        return None
    return 1.1 * (peaks[first] + (last - first) / STEPS_PER_THETA[name] * theta_bytes())


def row(name: str, peaks: dict[int, int]) -> list[str]:
    limit, last = bound(name, peaks), peaks[max(peaks)]
    verdict = (
        "–"
        if limit is None
        else f"{limit / measure.MIB:.0f}: {'holds' if last <= limit else 'BROKEN'}"
    )
    return [name, *(f"{b / measure.MIB:.0f}" for b in peaks.values()), verdict]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", nargs="*", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(f"|θ| = {theta_bytes() / measure.MIB:.2f} MiB. Peak MiB of one outer iteration:\n")
    rows = [
        row(name, curve(method, args.steps, device=args.device)) for name, method in CURVES.items()
    ]
    head = ["adjoint, gradient", *(f"{n} steps" for n in args.steps), f"bound at {max(args.steps)}"]
    print(measure.markdown(head, rows))


if __name__ == "__main__":
    main()
