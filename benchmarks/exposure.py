"""Does the bound of task=exposure hold, and does it rank images as an attack finds them? The
victims of defences.py under noise of three strengths: PSNR of each image as the attack has it,
beside the bound.

python benchmarks/exposure.py --data DATA [--out runs/defences] [--noise 0.3 1 3]

Each figure is a run of `simudy` in a directory of its own: what is finished is not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import defences
import measure
import torch
from torch import Tensor

from simudy.analysis.score import score
from simudy.app.store import reconstruction
from simudy.app.store.run_directory import RunDirectory
from simudy.app.store.secret import Secret

EXPOSURE = ("exposure.starts=1", "exposure.steps=8")


def measured(strength: str, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """PSNR of each true image, in decibels: of the attack, and at most."""
    name = f"noise {strength}"
    root = Path(args.out) / name.replace(" ", "_")
    words = (*defences.VICTIM, *defences.ATTACK, f"data.root={args.data}", *defences.DEFENCES[name])
    if not (root / "result.json").exists():
        defences.run(*words, f"hydra.run.dir={root}")
    told = Path(f"{root}_ranking")
    if not (told / "result.json").exists():
        held = f"evidence.folder={root / 'evidence'}"
        defences.run(*words, "task=exposure", *EXPOSURE, held, f"hydra.run.dir={told}")
    rows = defences.read(told / "exposure.json")["images"]
    bounds = torch.tensor([r["psnr_bound"] for r in sorted(rows, key=lambda r: r["image"])])
    return reached(RunDirectory(root)), bounds


def reached(run: RunDirectory) -> Tensor:
    """PSNR of the reconstruction paired with each true image."""
    secret = Secret.load(run.secret)
    assert secret is not None
    found = reconstruction.read(run.reconstruction)[0]["images"]
    truth, norm = secret.normalised()[0], secret.normalisation
    pairs = score(found, truth, normalisation=norm).pairs
    chosen = found[torch.tensor([pair.index for pair in pairs])]
    std = torch.tensor(norm.std)[:, None, None]
    return -10 * ((chosen - truth) * std).square().mean((1, 2, 3)).log10()


def spearman(one: Tensor, other: Tensor) -> float:
    """Correlation of ranks."""
    ranks = torch.stack([values.argsort().argsort().float() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", default="runs/defences")
    parser.add_argument("--noise", nargs="*", default=["0.3", "1", "3"])
    args = parser.parse_args()
    rows = []
    for strength in args.noise:
        attack, bound = measured(strength, args)
        figures = (attack.mean(), attack.max(), bound.mean(), bound.min())
        above = f"{int((attack > bound).sum())} of {len(bound)}"
        ranks = f"{spearman(attack, bound):.2f}"
        rows.append([strength, *(f"{float(f):.1f} dB" for f in figures), above, ranks])
    head = ["noise", "attack, mean", "best image", "bound, mean", "lowest", "above their bound"]
    print(measure.markdown([*head, "rank correlation"], rows))


if __name__ == "__main__":
    main()
