"""Decoding off units: images certified, error of the images, seconds of CPU and peak memory.

The victims are perceptrons trained on random images; the starts are the true images plus noise.

python benchmarks/off_units.py [--images 20 50] [--noise 0.7 1.0] [--threads 1]
"""

from __future__ import annotations

import argparse
import time

import measure
import torch
from torch import Tensor

from simudy import SGD, Evidence, Recipe, StatelessModel, simulate
from simudy.attack.first_layer.off_units import decode_off_units
from simudy.victim.models import MLP

SHAPE, CLASSES = (3, 16, 16), 10
WIDER = 5  # units per image


def victim(n: int) -> tuple[Evidence, Tensor]:
    """Evidence of a run on random images, and the images."""
    torch.manual_seed(0)
    images, recipe = torch.randn(n, *SHAPE), Recipe(SGD(lr=0.01), epochs=20)
    model = StatelessModel(MLP(SHAPE, CLASSES, width=WIDER * n))
    batches = recipe.collate(images, torch.arange(n) % CLASSES)
    with torch.no_grad():
        final = simulate(model.loss, model.params, batches, recipe.rules(n))
    return Evidence(model, model.params, final, recipe, SHAPE, CLASSES, n), images


def row(n: int, noise: float) -> list[str]:
    """One case, measured."""
    evidence, truth = victim(n)
    starts = truth + noise * torch.randn_like(truth)
    begun = time.process_time()
    decoded = decode_off_units(evidence, starts)
    seconds = time.process_time() - begun
    peak = measure.peak_bytes(lambda: decode_off_units(evidence, starts, rounds=1)) / measure.MIB
    apart = torch.cdist(truth.flatten(1), decoded.images.flatten(1)).min(1).values
    error = float((apart / truth.flatten(1).norm(dim=1)).mean())
    certified = f"{int(decoded.certified.sum())} of {n}"
    return [str(n), str(noise), certified, f"{error:.1e}", f"{seconds:.1f} s", f"{peak:.0f} MiB"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", nargs="*", type=int, default=[20, 50])
    parser.add_argument("--noise", nargs="*", type=float, default=[0.7, 1.0])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = ["images", "noise", "certified", "error", "time", "memory"]
    rows = [row(n, noise) for n in args.images for noise in args.noise]
    print(measure.markdown(columns, rows), flush=True)


if __name__ == "__main__":
    main()
