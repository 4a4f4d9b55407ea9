"""What helps: an owner's choices at publication and in training, against what is reconstructed,
told and kept: SSIM of the attack, AUC of membership, the bound on PSNR and test accuracy.

python benchmarks/defences.py --data DATA [--out runs/defences] [--only none 'noise 1' …]
python benchmarks/defences.py --data DATA --scratch --out runs/scratch

A small MLP that has learnt from 8,000 images, fine-tuned on 20 of 16×16 (as it is: no new head, so
that there is an accuracy to lose). Each figure is a run of `simudy` in a directory of its own, and
a row that is in defences.json is not measured again. Writes that and defences.png beside them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import measure
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simudy.app.store.secret import Secret
from simudy.attack.evidence import Evidence
from simudy.victim.models import MLP

SCRATCH = (
    "experiment=cifar10_mlp_n20",
    "data.size=16",
    "model.width=300",
    "data.heldout=200",
)
VICTIM = (
    *SCRATCH,
    "data.heldout=400",
    "victim=pretrained",
    "victim.pretrain.epochs=6",
    "victim.pretrain.new_head=false",
)
AROUND_SGD = ("+inner.rule._target_=simudy.SGD",)
PRIVATE = (
    "inner._target_=simudy.dynamics.optim.private",
    *AROUND_SGD,
    "+inner.rule.lr=0.1",
    "+inner.samples=20",
    "recipe.batch_size=1",
)
AVERAGED = ("inner._target_=simudy.dynamics.optim.Averaged", *AROUND_SGD, "+inner.decay=null")
ATTACK = ("outer.iterations=60",)
EXPOSURE = ("exposure.images=5", "exposure.starts=1", "exposure.steps=8")
DEFENCES: dict[str, tuple[str, ...]] = {
    "none": (),
    "float16": ("victim.publish.rounding=float16",),
    "bfloat16": ("victim.publish.rounding=bfloat16",),
    "int8": ("victim.publish.rounding=int8",),
    **{f"noise {s}": (f"victim.publish.noise={s}",) for s in (0.03, 0.3, 1, 3)},
    "pruned 0.2": ("victim.publish.prune=0.2",),
    "pruned 0.5": ("victim.publish.prune=0.5", "dummy.images=frequencies"),  # no span is left
    "averaged over the run": AVERAGED,
    "trained 3 times as long": ("recipe.epochs=60",),
    "on 3 times the images": ("data.n=60",),
    **{f"DP-SGD {s}": (*PRIVATE, f"+inner.noise={s}") for s in (0, 0.05, 0.5)},
}


def figures(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything measured of one defence."""
    root = Path(args.out) / name.replace(" ", "_")
    victim = SCRATCH if args.scratch else VICTIM
    words = (*victim, *ATTACK, f"data.root={args.data}", *DEFENCES[name])
    run(*words, f"hydra.run.dir={root}")
    held = f"evidence.folder={root / 'evidence'}"
    run(*words, "task=exposure", *EXPOSURE, held, f"hydra.run.dir={root}_exposure")
    run(*words, "task=membership", held, f"hydra.run.dir={root}_membership")
    attack, told = (read(Path(f"{root}{end}/result.json")) for end in ("", "_exposure"))
    membership = read(Path(f"{root}_membership/membership.json"))
    return {
        "ssim_paper": attack["ssim_paper"],
        "floor": max(attack["floor"].values()),
        "psnr": attack["psnr"],
        "psnr_bound": told["psnr_bound"],
        "auc": membership["auc"],
        "accuracy": accuracy(root),
    }


def run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "simudy", *words], check=True)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@torch.no_grad()
def accuracy(root: Path) -> float:
    """Of the published weights on the held-out images."""
    secret = Secret.load(root / "secret")
    assert secret is not None
    shape, classes = secret.victim.shape, len(secret.victim.classes)
    held = Evidence.load(root / "evidence", MLP(shape, classes, width=300))
    guessed = held.model(held.final, secret.normalised()[1]).argmax(1)
    return float((guessed == secret.heldout.labels).float().mean())


def plot(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """One bar a defence, a panel a figure."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    keys = {"ssim_paper": "SSIM", "auc": "membership AUC", "psnr_bound": "PSNR at most (dB)"}
    panels = figure.subplots(1, len(keys) + 1, sharey=True)
    for axes, (key, title) in zip(panels, {**keys, "accuracy": "accuracy"}.items(), strict=True):
        axes.barh(list(found), [found[name][key] for name in found])
        axes.set_title(title)
    panels[0].invert_yaxis()
    FigureCanvasAgg(figure).print_png(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", default="runs/defences")
    parser.add_argument("--scratch", action="store_true", help="a victim that begins at random")
    parser.add_argument("--only", nargs="*", default=list(DEFENCES))
    args = parser.parse_args()
    path = Path(args.out, "defences.json")
    found: dict[str, dict[str, Any]] = read(path) if path.exists() else {}
    for name in args.only:
        if name not in found:
            found[name] = figures(name, args)
            path.write_text(json.dumps(found, indent=2))
    found = {name: found[name] for name in DEFENCES if name in found}
    head = ["defence", "ssim_paper", "floor", "psnr", "psnr_bound", "auc", "accuracy"]
    rows = [[name, *(f"{row[key]:.3f}" for key in head[1:])] for name, row in found.items()]
    print(measure.markdown(head, rows))
    plot(Path(args.out, "defences.png"), found)


if __name__ == "__main__":
    main()
