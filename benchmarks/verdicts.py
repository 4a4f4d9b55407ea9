"""The three verdicts on images whose truth is known: how many of each are false.

Each victim is attacked, where verdicts are ``consistent`` by three searches of different seeds. An
image is *right* where a true one is paired with it at pixel SSIM above 0.4 (Hungarian pairing, so
that two of one true image are not both right). *Agreeing, refused* are images that searches agree
on which do not explain the weights: ``task=verdict`` refuses them. Runs that are there are not run
again.

python benchmarks/verdicts.py --root DATA [--kinds certified mlp …] [--victims N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import measure
import torch
from hydra import compose, initialize_config_module

from simudy.analysis.score import RECOVERED, score
from simudy.analysis.verdicts import CONSISTENT, VERDICTS, verdicts_on
from simudy.app.audit.verdict import EXPLAINED
from simudy.app.settings import schema
from simudy.app.store import reconstruction
from simudy.app.store.run_directory import RunDirectory
from simudy.app.tasks.prepare import load_secret, prepare_evidence
from simudy.app.tasks.reconstruct import attack
from simudy.app.tracking import new_tracker
from simudy.attack.agreement import agreement
from simudy.attack.first_layer.off_units import CERTIFIED_BELOW

REFUSED = "agreeing, refused"
SEARCHES, APART = 3, 1000  # searches of a victim, and how far apart their seeds are
COLUMNS = ["victims", "images", "verdict", "given", "right", "false", "lowest SSIM"]


@dataclass(frozen=True)
class Kind:
    """Victims of one kind, and how they are attacked."""

    settings: tuple[str, ...]
    victims: int
    searches: int = SEARCHES


SMALL_RESNET = "experiment=cifar10_resnet18_n10_small"
DECODED = (
    "experiment=cifar10_mlp_n200",
    "data.n=20",
    "model.width=200",
    "outer.iterations=100",
)
KINDS = {
    "certified": Kind(DECODED, 210, 1),
    "mlp_n20": Kind(("experiment=cifar10_mlp_n20_small",), 4),
    "mlp_n100_early": Kind(
        ("experiment=cifar10_mlp_n100_small", "outer.iterations=20", "outer.refine=0"), 4
    ),
    "resnet_n10": Kind((SMALL_RESNET, "outer.iterations=100"), 4),
    "resnet_n10_early": Kind((SMALL_RESNET, "outer.iterations=10"), 4),
}


def searched(kind: Kind, folder: Path, victim: int, root: str) -> list[RunDirectory]:
    """The searches of one victim, run if they are not there."""
    runs = [RunDirectory(folder / str(victim) / str(k)) for k in range(kind.searches)]
    for k, run in enumerate(runs):
        if not run.reconstruction.exists():
            print(f"{run.root} …", flush=True)
            given = [] if k == 0 else [f"evidence.folder={runs[0].evidence}"]
            seed = f"seed={victim + APART * k}"
            search(run, [*kind.settings, *given, seed, f"data.root={root}", "device=cpu"])
    return runs


def search(run: RunDirectory, settings: list[str]) -> None:
    """As ``simudy`` does, but for the pictures."""
    with initialize_config_module("simudy.conf", version_base="1.3"):
        cfg = compose("config", [*settings, "intervals.snapshots=0"])
    evidence = prepare_evidence(cfg, run, torch.device("cpu"))
    attack(
        cfg,
        evidence,
        labels=cfg.dummy.labels,
        folder=run,
        device=torch.device("cpu"),
        tracker=new_tracker(cfg, run.root),
    )


def judged(runs: list[RunDirectory], *, false_rate: float) -> Iterator[tuple[str, float]]:
    """The verdict on each image of the first search, and its SSIM to the true one paired with it; 0
    where none is.
    """
    found = [reconstruction.read(run.reconstruction) for run in runs]
    images = found[0][0]["images"]
    proofs = found[0][1].get("certificates")
    agreed = None
    if len(runs) > 1:
        agreed = agreement([t["images"] for t, _ in found], [t["labels"] for t, _ in found])
    verdicts = verdicts_on(
        len(images),
        certified=proofs and [one < CERTIFIED_BELOW for one in proofs],
        consistent=agreed and agreed.consistent(false_rate=false_rate).tolist(),
    )
    if any(facts["distance"] > EXPLAINED for _, facts in found):  # task=verdict refuses these
        verdicts = [REFUSED if verdict == CONSISTENT else verdict for verdict in verdicts]
    secret = load_secret(compose_nothing(), runs[0])
    assert secret is not None
    paired = score(images, secret.normalised()[0], normalisation=secret.normalisation).pairs
    ssim = {pair.index: pair.ssim for pair in paired}
    return zip(verdicts, (ssim.get(i, 0.0) for i in range(len(images))), strict=True)


def compose_nothing():
    """Settings of a run whose evidence is its own."""
    with initialize_config_module("simudy.conf", version_base="1.3"):
        return compose("config")


def rows(name: str, victims: int, images: list[tuple[str, float]]) -> Iterator[list[str]]:
    """One for each verdict that was given."""
    counts = Counter(verdict for verdict, _ in images)
    for verdict in (*VERDICTS[:-1], REFUSED, VERDICTS[-1]):
        values = [ssim for given, ssim in images if given == verdict]
        if not values:
            continue
        right = sum(value > RECOVERED for value in values)
        lowest = f"{min(values):.3f}" if values else "–"
        yield [
            name, str(victims), str(len(images)), verdict, str(counts[verdict]), str(right),
            str(counts[verdict] - right), lowest,
        ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="the folder of CIFAR-10's binary files")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--victims", type=int, default=10**9, help="at most, of each kind")
    parser.add_argument("--false-rate", type=float, default=0.05)
    parser.add_argument("--out", type=Path, default=Path("runs/verdicts"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    schema.register()
    found: dict[str, list[tuple[str, float]]] = {name: [] for name in args.kinds}
    done = Counter[str]()
    for victim, name in itertools.product(range(max(k.victims for k in KINDS.values())), found):
        if victim < min(KINDS[name].victims, args.victims):
            runs = searched(KINDS[name], args.out / name, victim, args.root)
            found[name] += judged(runs, false_rate=args.false_rate)
            done[name] += 1
    table = [row for name, images in found.items() for row in rows(name, done[name], images)]
    print(measure.markdown(["kind", *COLUMNS], table), flush=True)


if __name__ == "__main__":
    main()
