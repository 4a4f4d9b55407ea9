"""How much weights from inside a run help: the narrow ResNet-18 far from linear, its score by the
number of checkpoints, each between known weights simulated alone.

python benchmarks/known_nodes.py --data DATA [--images 10 20] [--iterations 200] [--out runs/nodes]

Each row is a run of `simudy` in a directory of its own: what is finished is not run again, and
what was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import measure

VICTIM = (
    "experiment=cifar10_resnet18_n20_nonlinear_small",
    "victim.pretrain.epochs=5",
    "victim.pretrain.optimizer._target_=torch.optim.Adam",
    "victim.pretrain.optimizer.lr=1e-3",
)
ATTACK = ("prior.tv=0.01", "gradient=traced", "attack.grow_until=0")


def row(n: int, count: int, args: argparse.Namespace) -> list[str]:
    """The outcome with ``count`` checkpoints in a run of ``n`` steps on ``n`` images."""
    folder = Path(args.out) / f"n{n}_{count}"
    settings = (f"data.root={args.data}", f"data.n={n}", f"recipe.epochs={n}")
    loop = (f"victim.checkpoints={count}", f"outer.iterations={args.iterations}")
    command = [sys.executable, "-m", "simudy", *VICTIM, *ATTACK, *settings, *loop]
    subprocess.run([*command, f"hydra.run.dir={folder}"], check=True)
    found = json.loads((folder / "result.json").read_text())
    scores = [f"{found[key]:.4f}" for key in ("ssim_paper", "distance")]
    return [str(n), str(count), *scores, f"{max(found['floor'].values()):.4f}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", nargs="*", type=int, default=[10, 20])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--out", default="runs/nodes")
    args = parser.parse_args()
    head = ["images and steps", "checkpoints", "ssim_paper", "distance", "floor"]
    cases = [(n, count) for n in args.images for count in (0, 2, 4, n - 1)]
    rows = [row(n, count, args) for n, count in cases]
    print(measure.markdown(head, rows))


if __name__ == "__main__":
    main()
