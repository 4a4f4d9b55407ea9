"""One outer iteration of the attack beside the paper's flat unroll: time and peak memory, side by
side in one run.

The attack runs as configured: images in the span and factored weights for the MLPs, for the ResNet
the whole graph or, lean, forward over reverse; the reference keeps pixels, a flat θ and the whole
graph. Both simulate the same run and take the gradient of the cosine distance. The MLP reference
also pays for its 3,072 pixels an image: that it must is the point.

python benchmarks/outer.py [--cases mlp20 mlp100 mlp4000 resnet resnet-lean] [--device cpu]
[--repeats 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import measure
import torch
from peers import Task, flat
from torch import nn

from simudy import (
    SGD,
    Evidence,
    Factored,
    Mixed,
    Recipe,
    Recompute,
    StatelessModel,
    Traced,
    simulate,
)
from simudy.attack.methods.anchored import Anchored
from simudy.attack.methods.corrected import Corrected
from simudy.attack.methods.simudy import Simudy
from simudy.dynamics import tree
from simudy.victim.models import MLP, ResNet

SHAPE = (3, 32, 32)
DEFAULT = ["mlp20", "mlp100", "mlp4000", "resnet", "resnet-lean"]


@dataclass
class Case:
    """A victim, and how it is attacked."""

    module: Callable[[], nn.Module]
    n: int
    epochs: int
    method: Simudy = field(default_factory=lambda: Simudy(images="span", gradient=Factored()))
    # a step without derivatives in an iteration's place, judged as the outer loop judges it
    refine: bool = False
    rounded: bool = False  # convolutions in bf16


def resnet() -> nn.Module:
    return ResNet(SHAPE, width=16).eval()


def resnet_whole() -> nn.Module:
    return ResNet(SHAPE).eval()


CASES = {
    "mlp20": Case(lambda: MLP(SHAPE), n=20, epochs=8),
    "mlp20x20": Case(lambda: MLP(SHAPE), n=20, epochs=20),
    "mlp100": Case(lambda: MLP(SHAPE), n=100, epochs=8),
    "mlp100-refine": Case(lambda: MLP(SHAPE), n=100, epochs=8, refine=True),
    "mlp4000": Case(lambda: MLP(SHAPE, width=4000), n=20, epochs=8),
    "resnet": Case(resnet, n=20, epochs=20, method=Simudy()),
    "resnet-lean": Case(resnet, n=20, epochs=20, method=Simudy(gradient=Mixed())),
    # on a path that stands, without what making one costs (a simulation of the run)
    "resnet-anchored": Case(resnet, n=20, epochs=20, method=Anchored()),
    "resnet-anchored-lean": Case(resnet, n=20, epochs=20, method=Anchored(adjoint=Recompute())),
    "resnet-anchored-two": Case(resnet, n=20, epochs=20, method=Anchored(nodes=2)),
    # through a stretch, without what correcting costs (a simulation of the run)
    "resnet-corrected": Case(resnet, n=20, epochs=20, method=Corrected()),
    "resnet-whole": Case(resnet_whole, n=20, epochs=2, method=Simudy()),
    "resnet-whole-bf16": Case(resnet_whole, n=20, epochs=2, method=Simudy(), rounded=True),
    "resnet-traced": Case(resnet, n=20, epochs=20, method=Simudy(gradient=Traced())),
    "resnet-compiled": Case(
        resnet, n=20, epochs=20, method=Simudy(gradient=Traced(compile="default"))
    ),
}


def victim(case: Case, *, device: str) -> Evidence:
    """Evidence of a run on images of noise."""
    torch.manual_seed(0)
    model = StatelessModel(case.module()).to(device)
    images, labels = torch.randn(case.n, *SHAPE).to(device), (torch.arange(case.n) % 10).to(device)
    recipe = Recipe(SGD(lr=0.01), epochs=case.epochs)
    with torch.no_grad():
        final = simulate(
            model.loss, model.params, recipe.collate(images, labels), recipe.rules(case.n)
        )
    model = model.rounded() if case.rounded else model
    return Evidence(model, model.params, final, recipe, SHAPE, 10, case.n)


def ours(case: Case, evidence: Evidence) -> Callable[[], object]:
    problem = case.method.problem(evidence, seed=0)
    leaf = problem.variables()["latent"]
    if case.refine:
        return torch.no_grad()(lambda: (problem.refined(damping=0.03), problem.objective(0.0)))
    return lambda: torch.autograd.grad(problem.objective(0.0)[0], leaf)


def reference(case: Case, evidence: Evidence) -> Callable[[], object]:
    images = torch.randn(
        case.n, *SHAPE, device=evidence.initial[next(iter(evidence.initial))].device
    ).requires_grad_()
    labels = (torch.arange(case.n) % 10).to(images.device)
    moved = tree.sub(evidence.final, evidence.initial)
    module = case.module().to(
        images.device
    )  # as it comes: the copy in the evidence has its norms folded away
    task = Task(evidence.model, module, evidence.initial, images, labels, moved, steps=case.epochs)
    return lambda: torch.autograd.grad(flat(task), images)


SIDES = {"simudy": ours, "flat unroll": reference}


def peak(name: str, side: str, device: str) -> int:
    """Bytes of one outer iteration in this process; a first one, which may record or compile, goes
    before.
    """
    run = SIDES[side](CASES[name], victim(CASES[name], device=device))
    run()
    return measure.peak_bytes(run, device=device)


def compare(name: str, *, device: str, repeats: int) -> list[str]:
    evidence = victim(CASES[name], device=device)
    runs = {side: make(CASES[name], evidence) for side, make in SIDES.items()}
    seconds = measure.side_by_side(runs, repeats=repeats, device=device)
    where = ["--cases", name, "--device", device, "--peak-of"]
    peaks = {side: measure.in_own_process(__file__, [*where, side]) for side in SIDES}
    cells = [f"{seconds[s] * 1e3:.0f} ms, {peaks[s] / measure.MIB:.0f} MiB" for s in SIDES]
    (our_time, their_time), (our_peak, their_peak) = seconds.values(), peaks.values()
    return [name, *cells, f"{their_time / our_time:.1f}×", f"{our_peak / their_peak:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="*", choices=CASES, default=DEFAULT)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--peak-of", choices=SIDES, help="print the peak of one side, in bytes, and stop"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(json.dumps(peak(args.cases[0], args.peak_of, args.device)))
        return
    print(measure.markdown(["case", *SIDES, "faster", "memory, of the reference"], []), flush=True)
    for name in args.cases:
        print(
            f"| {' | '.join(compare(name, device=args.device, repeats=args.repeats))} |", flush=True
        )


if __name__ == "__main__":
    main()
