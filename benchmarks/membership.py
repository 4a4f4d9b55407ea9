"""Membership by row spaces, calibrated: on fresh victims, are p-values of held-out images uniform,
and how many members are found? Beside it, on the same victims, the loss and LiRA.

Each victim is drawn anew: its images from records 0 to 999 of CIFAR-10, its reference (300 images)
and its held-out candidates (200 others) from 1000 to 1999. What is done is kept in --out and not
done again. Shadow models, of LiRA offline (Carlini et al., 2022, with one deviation for all
images, as there are few), begin at the victim's own θ0 and see public records from 2000 on.

python benchmarks/membership.py --root DATA [--out runs/membership] [--shadows 4] [--repeats 1]
    [--ridge 0.01] [--only mlp]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import measure
import torch
import torch.nn.functional as F
from scipy.stats import chi2
from torch import Tensor, nn

from simudy import SGD, Adam, Evidence, Recipe
from simudy.analysis.calibration import p_values, separation, uniformity
from simudy.analysis.linearity import run_linearity
from simudy.attack.membership.layer_inputs import Probe
from simudy.attack.membership.metric import RIDGE
from simudy.attack.membership.outside import RowSpaceTest
from simudy.victim.data import Cifar10
from simudy.victim.models import MLP, ResNet, ViT
from simudy.victim.pretrain import Pretraining, pretrain
from simudy.victim.train import train

REFERENCE, FITTED, STRANGERS = 300, 100, 200
COUNTS = (10, 20, 50)
FIRST_SEED = 100  # smaller ones were looked at while the rule was made
METHODS = ("row space", "loss", "loss drop", "LiRA")


@dataclasses.dataclass(frozen=True)
class Case:
    """A victim to train."""

    kind: str
    n: int
    lr: float
    precision: str = "float32"
    adam: bool = False
    epochs: int = 10
    batch: int | None = None

    @property
    def name(self) -> str:
        rule = "adam" if self.adam else "sgd"
        longer = f" epochs={self.epochs}" if self.epochs != 10 else ""
        parts = f" batch={self.batch}" if self.batch else ""
        return f"{self.kind} n={self.n} {rule} lr={self.lr} {self.precision}{longer}{parts}"

    @property
    def recipe(self) -> Recipe:
        rule = (Adam if self.adam else SGD)(lr=self.lr)
        shuffle = self.batch is not None
        return Recipe(rule, epochs=self.epochs, batch_size=self.batch, shuffle=shuffle, seed=1)


def cases() -> list[Case]:
    """The victims of the table."""
    both = ("float32", "bfloat16")
    found = [Case("mlp", n, 0.01, kind) for n in COUNTS for kind in both]
    for lr in (0.01, 0.02, 0.03):  # of falling M_lin
        found += [Case("resnet", n, lr) for n in COUNTS] + [Case("resnet", 20, lr, "bfloat16")]
    found += [Case("resnet-train", n, 0.01) for n in COUNTS]
    found += [Case("resnet-train", 20, 0.01, "bfloat16"), Case("resnet", 20, 1e-3, adam=True)]
    found += [Case("vit", n, 0.05, kind) for n in COUNTS for kind in both]
    found += [Case("mlp", 500, 0.01), Case("resnet", 200, 0.01), Case("vit", 200, 0.05)]
    return [*found, *(Case(kind, 50, 0.01, batch=10) for kind in ("mlp", "resnet")),
            Case("resnet", 20, 0.01, epochs=50)]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Data:
    """Normalised images and labels of a case."""

    members: tuple[Tensor, Tensor]
    reference: Tensor
    strangers: tuple[Tensor, Tensor]
    public: tuple[Tensor, Tensor]


def data(case: Case, root: str, seed: int) -> Data:
    size = 16 if case.kind == "vit" else 32
    held = REFERENCE + STRANGERS
    splits = Cifar10(root, n=case.n, heldout=held, size=size, shuffle=True).load(seed=seed)
    assert splits.pretrain is not None
    parts = (splits.victim, splits.heldout, splits.pretrain)
    normal = [splits.normalisation.normalise(part.images) for part in parts]
    order = torch.randperm(held, generator=torch.Generator().manual_seed(seed))
    reference, strangers = order[:REFERENCE], order[REFERENCE:]
    return Data(
        (normal[0], splits.victim.labels),
        normal[1][reference],
        (normal[1][strangers], splits.heldout.labels[strangers]),
        (normal[2], splits.pretrain.labels),
    )


def network(case: Case, held: Data, out: Path, seed: int) -> nn.Module:
    """At θ0; the ResNets of frozen norms are pretrained, all from one file, with a new head."""
    torch.manual_seed(seed)
    shape = held.reference.shape[1:]
    if case.kind == "mlp":
        return MLP(shape, 10, width=400)
    if case.kind == "vit":
        return ViT(shape, 10)
    net = ResNet(shape, 10, width=16)
    if case.kind == "resnet-train":
        return net.train()
    pretrain(net, *held.public, Pretraining(epochs=2), cache=out / "pretrained", seed=seed)
    return net.eval()


def trained(net: nn.Module, case: Case, images: Tensor, labels: Tensor) -> Evidence:
    """Evidence of a run, rounded as it is published."""
    model, final = train(net, images, labels, case.recipe)
    shape: Any = tuple(images.shape[1:])
    held = Evidence(model, model.params, final, case.recipe, shape, 10, len(images))
    if case.precision == "float32":
        return held
    kind = getattr(torch, case.precision)
    ends: Any = {
        name: {k: w.to(kind).to(w.dtype) for k, w in getattr(held, name).items()}
        for name in ("initial", "final")
    }
    return dataclasses.replace(held, precision=case.precision, **ends)


@torch.no_grad()
def losses(held: Evidence, params: Any, images: Tensor, labels: Tensor, public: Tensor) -> Tensor:
    """By image, with norms of train mode at the statistics of public images."""
    probe = Probe(held, params, public)
    logits = torch.cat([probe(part) for part in images.split(100)])
    return F.cross_entropy(logits, labels, reduction="none").double()


def confidence(loss: Tensor) -> Tensor:
    """log p/(1 − p) of the true class, which is nearly normal over shadow models."""
    return -loss - torch.log(-torch.expm1(-loss)).clamp(min=-50)


def baselines(
    case: Case, held: Evidence, given: Data, net: nn.Module, shadows: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Scores of members and strangers by the loss, its drop, and LiRA offline."""
    images, labels = (torch.cat(pair) for pair in zip(given.members, given.strangers, strict=True))
    public = given.reference[:FITTED]
    before, after = (losses(held, w, images, labels, public) for w in (held.initial, held.final))
    out = []
    for k in range(shadows):
        rng = torch.Generator().manual_seed(k)
        rows = torch.randperm(len(given.public[0]), generator=rng)[: case.n]
        shadow = trained(net, case, given.public[0][rows], given.public[1][rows])
        out.append(confidence(losses(shadow, shadow.final, images, labels, public)))
    known = torch.stack(out)
    lira = (confidence(after) - known.mean(0)) / (known - known.mean(0)).square().mean().sqrt()
    scores = {"loss": -after, "loss drop": before - after, "LiRA": lira}
    return {name: (s[: case.n], s[case.n :]) for name, s in scores.items()}


def run(case: Case, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One victim, trained, asked and counted."""
    given = data(case, args.root, seed)
    net = network(case, given, args.out, seed)
    begun = time.process_time()
    held = trained(net, case, *given.members)
    spent, begun = time.process_time() - begun, time.process_time()
    test = RowSpaceTest.of(held, given.reference[:FITTED], ridge=args.ridge)
    parts = (given.members[0], given.strangers[0], given.reference[FITTED:])
    members, strangers, against = (test.scores(part) for part in parts)
    seconds = time.process_time() - begun
    even = uniformity(strangers, against)
    scores = {"row space": (members, strangers)}
    scores |= baselines(case, held, given, net, args.shadows)
    return {
        **dataclasses.asdict(case), "seed": seed, "layer": test.layer.name,
        "rank": test.space.rank, "training": spent, "seconds": seconds,
        "load": case.n * test.layer.spots / test.space.rank,
        "m_lin": _m_lin(case, net, given), "ks": even.as_dict() if even else None,
        "p": p_values(strangers, against).tolist(),
        "p_members": p_values(members, against).tolist(),
        **{name: separation(*pair).as_dict() for name, pair in scores.items()},  # type: ignore[union-attr]
    }  # fmt: skip


def _m_lin(case: Case, net: nn.Module, given: Data) -> float | None:
    """Where the norms do not mix images; of ten, which costs least and says as much."""
    if case.kind != "resnet" or case.n != 10:
        return None
    return run_linearity(net, *given.members, case.recipe)["m_lin"]


def table(found: Iterable[dict[str, Any]]) -> str:
    """A row for each victim."""
    columns = ["victim", "n", "published", "layer", "n·spots / rank", "KS p"]
    columns += [f"{name}: AUC, TPR" for name in METHODS] + ["CPU"]
    rows = []
    for one in found:
        rule = f"{one['kind']}, {'Adam' if one['adam'] else 'SGD'} {one['lr']}"
        rule += f", batches of {one['batch']}" if one.get("batch") else ""
        rule += f", {one['epochs']} epochs" if one.get("epochs", 10) != 10 else ""
        rule += f", M_lin {one['m_lin']:.2f}" if one["m_lin"] is not None else ""
        figures = [f"{one[m]['auc']:.3f}, {100 * one[m]['tpr']:.0f} %" for m in METHODS]
        start = [rule, str(one["n"]), one["precision"], f"`{one['layer']}`", f"{one['load']:.2f}"]
        rows.append([*start, f"{one['ks']['p']:.2f}", *figures, f"{one['seconds']:.1f} s"])
    return measure.markdown(columns, rows)


def summary(found: list[dict[str, Any]]) -> str:
    """Over all victims: are held-out images' p-values uniform?"""
    ps = torch.tensor([p for one in found for p in one["p"]])
    lines = [f"{len(found)} victims, {len(ps)} p-values of held-out images"]
    lines += [
        f"P(p ≤ {a}) = {float((ps <= a).double().mean()):.4f}" for a in (0.01, 0.05, 0.1, 0.5)
    ]
    lowest = min(one["ks"]["p"] for one in found)
    squares = [_deviation(torch.tensor(one["p"])) ** 2 for one in found]
    lines += [f"lowest KS p {lowest:.1e}; victims' mean p-values: {_even(squares)}"]
    for name in METHODS:
        auc, tpr = ([one[name][k] for one in found] for k in ("auc", "tpr"))
        lines += [f"{name}: mean AUC {sum(auc) / len(auc):.3f}, mean TPR {sum(tpr) / len(tpr):.3f}"]
    return "\n".join(lines)


def _even(squares: list[float]) -> str:
    return f"χ² p {chi2.sf(sum(squares), len(squares)):.2f}"


def resplit(case: Case, args: argparse.Namespace, seed: int, *, times: int = 150) -> str:
    """One victim's held-out images, parted and fitted anew again and again."""
    given = data(case, args.root, seed)
    held = trained(network(case, given, args.out, seed), case, *given.members)
    images = torch.cat([given.reference, given.strangers[0]])
    rng, squares, lowest = torch.Generator().manual_seed(5), [], 1.0
    for _ in range(times):
        order = torch.randperm(len(images), generator=rng)
        fitted, against, strangers = order.tensor_split([FITTED, REFERENCE])
        test = RowSpaceTest.of(held, images[fitted])
        scores = [test.scores(images[rows]) for rows in (strangers, against)]
        squares.append(_deviation(p_values(*scores)) ** 2)
        even = uniformity(*scores)
        lowest = min(lowest, even.p if even else 1.0)
    spread = (sum(squares) / times) ** 0.5
    return (
        f"{case.name}, seed {seed}: spread {spread:.2f}, {_even(squares)}, lowest KS p {lowest:.4f}"
    )


def _deviation(ps: Tensor) -> float:
    """How far the mean of a victim's p-values is from what it should be, in standard deviations:
    that of a rank sum, as they all look at one reference.
    """
    reference = REFERENCE - FITTED
    spread = ((1 / len(ps) + 1 / reference) / 12) ** 0.5
    return float(ps.mean() - 0.5 - 0.5 / (reference + 1)) / spread


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/membership"))
    parser.add_argument("--shadows", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1, help="victims of each kind")
    parser.add_argument("--ridge", type=float, default=RIDGE, help="of the metric; 1e9: none")
    parser.add_argument("--resplit", nargs="*", type=int, default=[], help="seeds: split anew")
    parser.add_argument("--only", default="", help="victims whose names hold this")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [(k, case) for k, case in enumerate(cases()) if args.only in case.name]
    for seed in args.resplit:
        print(resplit(wanted[0][1], args, seed), flush=True)
    found = []
    for seed in [] if args.resplit else range(FIRST_SEED, FIRST_SEED + 1000 * args.repeats, 1000):
        for k, case in wanted:
            kept = args.out / f"{case.name.replace(' ', '_')}_{seed + k}.json"
            if not kept.exists():
                one = run(case, args, seed + k)
                kept.write_text(json.dumps(one))
                print(case.name, *(f"{m} {one[m]['auc']:.3f}" for m in METHODS), flush=True)
            found.append(json.loads(kept.read_text()))
    if found:
        print(table(found), summary(found), sep="\n\n")


if __name__ == "__main__":
    main()
