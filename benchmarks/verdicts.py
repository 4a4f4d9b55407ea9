"""The three verdicts on images whose truth is known: how many of each are false.

Each victim is attacked, where verdicts are ``consistent`` by three searches of different seeds. An
image is *right* where a true one is paired with it at pixel SSIM above 0.4 (Hungarian pairing, so
that two of one true image are not both right). *Agreeing* are images on which searches agree beyond
chance and which are not called consistent: *refused* where a search does not explain the weights,
*unlike* where the pictures differ. Runs that are there are not run again.

python benchmarks/verdicts.py --root DATA [--kinds certified mlp …] [--victims N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import measure
import torch
from hydra import compose, initialize_config_module

from simudy.analysis.score import RECOVERED, score
from simudy.analysis.verdicts import (
    ALIKE,
    CONSISTENT,
    UNSUPPORTED,
    VERDICTS,
    likeness,
    verdicts_on,
)
from simudy.app.audit.verdict import EXPLAINED
from simudy.app.settings import schema
from simudy.app.store import reconstruction
from simudy.app.store.run_directory import RunDirectory
from simudy.app.tasks.prepare import load_secret, prepare_evidence
from simudy.app.tasks.reconstruct import attack
from simudy.app.tracking import new_tracker
from simudy.attack.agreement import agreement
from simudy.attack.first_layer.off_units import CERTIFIED_BELOW

REFUSED, UNLIKE = "agreeing, refused", "agreeing, unlike"
SEARCHES, APART = 3, 1000  # searches of a victim, and how far apart their seeds are
COLUMNS = ["victims", "distances", "images", "verdict", "given", "right", "false", "lowest SSIM"]


@dataclass(frozen=True)
class Kind:
    """Victims of one kind, and how they are attacked."""

    settings: tuple[str, ...]
    victims: int
    searches: int = SEARCHES
    first: int = 0  # its seed


SMALL_MLP = "experiment=cifar10_mlp_n20_small"
SMALL_RESNET = "experiment=cifar10_resnet18_n10_small"
SMALL_CNN = (SMALL_RESNET, "model=cnn", "model.width=32")  # no BatchNorm
DECODED = (
    "experiment=cifar10_mlp_n200",
    "data.n=20",
    "model.width=200",
    "outer.iterations=100",
)
KINDS = {
    "certified": Kind(DECODED, 210, 1),
    "mlp_n20": Kind((SMALL_MLP,), 4),
    "mlp_n100_early": Kind(
        ("experiment=cifar10_mlp_n100_small", "outer.iterations=20", "outer.refine=0"), 4
    ),
    "resnet_n10": Kind((SMALL_RESNET, "outer.iterations=100"), 4),
    "resnet_n10_early": Kind((SMALL_RESNET, "outer.iterations=10"), 4),
    "cnn_n10": Kind((*SMALL_CNN, "outer.iterations=100"), 5, first=10),
    "cnn_n10_half": Kind((*SMALL_CNN, "outer.iterations=30"), 5, first=30),
    "cnn_n20": Kind((*SMALL_CNN, "data.n=20", "outer.iterations=100"), 5, first=50),
}
HELD_OUT = {  # victims on which neither a limit nor a rule was set
    **{name: replace(KINDS[name], first=100) for name in ("cnn_n10", "cnn_n10_half", "cnn_n20")},
    **{name: replace(KINDS[name], first=100) for name in ("mlp_n20", "resnet_n10")},
    "mlp_n50": Kind((SMALL_MLP, "data.n=50", "model.width=500"), 2, first=100),
    "resnet_n10_half": Kind((SMALL_RESNET, "outer.iterations=40"), 4, first=100),
}
KINDS |= {f"held_out_{name}": kind for name, kind in HELD_OUT.items()}


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
    verdicts = verdicts_on(
        len(images),
        certified=proofs and [one < CERTIFIED_BELOW for one in proofs],
        consistent=None,
    )
    if len(runs) > 1:
        verdicts = list(agreeing(found, false_rate=false_rate))
    secret = load_secret(compose_nothing(), runs[0])
    assert secret is not None
    paired = score(images, secret.normalised()[0], normalisation=secret.normalisation).pairs
    ssim = {pair.index: pair.ssim for pair in paired}
    return zip(verdicts, (ssim.get(i, 0.0) for i in range(len(images))), strict=True)


def agreeing(found: Sequence[tuple[Any, Any]], *, false_rate: float) -> Iterator[str]:
    """What ``task=verdict`` makes of searches, and why it does not call the others consistent."""
    images = [tensors["images"] for tensors, _ in found]
    agreed = agreement(images, [tensors["labels"] for tensors, _ in found])
    explained = all(facts["distance"] <= EXPLAINED for _, facts in found)
    beyond_chance = agreed.consistent(false_rate=false_rate)
    for beyond, alike in zip(beyond_chance, likeness(images, agreed.partners), strict=True):
        said = CONSISTENT if alike >= ALIKE else UNLIKE
        yield (said if explained else REFUSED) if beyond else UNSUPPORTED


def distances(runs: list[RunDirectory]) -> list[float]:
    return [reconstruction.read(run.reconstruction)[1]["distance"] for run in runs]


def compose_nothing():
    """Settings of a run whose evidence is its own."""
    with initialize_config_module("simudy.conf", version_base="1.3"):
        return compose("config")


def rows(
    name: str, victims: int, ends: list[float], images: list[tuple[str, float]]
) -> Iterator[list[str]]:
    """One for each verdict that was given."""
    counts = Counter(verdict for verdict, _ in images)
    for verdict in (*VERDICTS[:-1], UNLIKE, REFUSED, VERDICTS[-1]):
        values = [ssim for given, ssim in images if given == verdict]
        if not values:
            continue
        right = sum(value > RECOVERED for value in values)
        lowest = f"{min(values):.3f}" if values else "–"
        yield [
            name, str(victims), f"{min(ends):.4f}–{max(ends):.4f}", str(len(images)), verdict,
            str(counts[verdict]), str(right), str(counts[verdict] - right), lowest,
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
    ends: dict[str, list[float]] = {name: [] for name in args.kinds}
    done = Counter[str]()
    for k, name in itertools.product(range(max(k.victims for k in KINDS.values())), found):
        if k < min(KINDS[name].victims, args.victims):
            runs = searched(KINDS[name], args.out / name, KINDS[name].first + k, args.root)
            found[name] += judged(runs, false_rate=args.false_rate)
            ends[name] += distances(runs)
            done[name] += 1
    table = [row for name in found for row in rows(name, done[name], ends[name], found[name])]
    print(measure.markdown(["kind", *COLUMNS], table), flush=True)


if __name__ == "__main__":
    main()
