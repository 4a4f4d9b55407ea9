"""simudy beside its peers: time per outer iteration, peak memory, and error against float64.

One outer iteration simulates SGD on 20 images of noise from θ0, compares the displacement with a
given one by cosine, and takes the gradient by the images. Peers: ``higher``, TorchOpt (MetaSGD and
functional), and the paper's unroll, in which θ is a flat vector cut into views every step; beside
them, where jax and optax are installed, JAX (``jax_peer.py``). Times are medians of turns taken in
one process; memory is the most resident (CPU) or allocated (CUDA) memory of a fresh process above
what it holds once set up and warm, and of JAX what XLA says.

python benchmarks/peers.py [--cases mlp conv conv32] [--steps 4 16 64]
    [--methods "simudy Traced Direct" higher]
                           [--device cpu] [--repeats 5]
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise

import measure
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simudy import (
    SGD,
    Direct,
    Factored,
    Mixed,
    Recompute,
    Reverse,
    StatelessModel,
    Traced,
    cosine,
    simulate,
)
from simudy.dynamics import tree
from simudy.dynamics.tree import Params
from simudy.victim.models import MLP, ResNet

LR = 0.01
SIZES = {"mlp": 32, "conv": 16, "conv32": 32, "tiny": 8}  # height and width of the images


def network(case: str) -> nn.Module:
    shape = (3, SIZES[case], SIZES[case])
    if case.startswith("conv"):
        return ResNet(shape, width=16)
    return MLP(shape, width=8 if case == "tiny" else 1000)


@dataclass
class Task:
    """What one outer iteration starts from."""

    model: StatelessModel
    module: nn.Module
    start: Params
    images: Tensor
    labels: Tensor
    moved: Params  # the displacement to compare with
    steps: int

    def objective(self, end: Params) -> Tensor:
        return cosine(tree.sub(end, self.start), self.moved)


def task(case: str, steps: int, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Task:
    torch.manual_seed(0)
    module, size = network(case).eval(), SIZES[case]
    images, truth = torch.randn(2, 20, 3, size, size).unbind()
    labels = torch.arange(20) % 10
    module, images, truth, labels = (
        module.to(device, dtype),
        images.to(device, dtype),
        truth.to(device, dtype),
        labels.to(device),
    )
    model = StatelessModel(module)
    with torch.no_grad():
        end = simulate(model.loss, model.params, [(truth, labels)] * steps, SGD(lr=LR))
    return Task(
        model,
        module,
        model.params,
        images.requires_grad_(),
        labels,
        tree.sub(end, model.params),
        steps,
    )


def simudy(gradient, adjoint) -> Callable[[Task], Tensor]:
    def iteration(task: Task) -> Tensor:
        batches = [(task.images, task.labels)] * task.steps
        end = simulate(
            task.model.loss, task.start, batches, SGD(lr=LR), adjoint=adjoint, gradient=gradient
        )
        return task.objective(end)

    return iteration


def flat(task: Task) -> Tensor:
    """The paper's: θ a flat vector, cut into views at every step."""
    start = task.start
    edges = [0, *torch.tensor([p.numel() for p in start.values()]).cumsum(0).tolist()]
    theta = tree.flatten(start).requires_grad_()

    def cut(vector: Tensor) -> Params:
        pieces = (vector[a:b] for a, b in pairwise(edges))
        return {
            name: piece.view_as(p) for (name, p), piece in zip(start.items(), pieces, strict=True)
        }

    for _ in range(task.steps):
        loss = F.cross_entropy(
            torch.func.functional_call(task.module, cut(theta), (task.images,)), task.labels
        )
        theta = theta - LR * torch.autograd.grad(loss, theta, create_graph=True)[0]
    return task.objective(cut(theta))


def higher_loop(task: Task) -> Tensor:
    import higher

    module = task.module
    with higher.innerloop_ctx(module, torch.optim.SGD(module.parameters(), lr=LR)) as (
        copied,
        optimizer,
    ):
        for _ in range(task.steps):
            optimizer.step(F.cross_entropy(copied(task.images), task.labels))
        return task.objective(dict(zip(task.start, copied.parameters(), strict=True)))


def torchopt_meta(task: Task) -> Tensor:
    import torchopt

    module = copy.deepcopy(task.module)
    optimizer = torchopt.MetaSGD(module, lr=LR)
    for _ in range(task.steps):
        optimizer.step(F.cross_entropy(module(task.images), task.labels))
    return task.objective({name: _attribute(module, name) for name in task.start})


def torchopt_functional(task: Task) -> Tensor:
    import torchopt

    params = {name: p.clone().requires_grad_() for name, p in task.start.items()}
    optimizer = torchopt.sgd(lr=LR)
    state = optimizer.init(params)
    for _ in range(task.steps):
        loss = F.cross_entropy(
            torch.func.functional_call(task.module, params, (task.images,)), task.labels
        )
        grads = dict(
            zip(
                params,
                torch.autograd.grad(loss, list(params.values()), create_graph=True),
                strict=True,
            )
        )
        updates, state = optimizer.update(grads, state, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return task.objective(params)


def _attribute(module: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    return getattr(module.get_submodule(path), last)


OURS = {
    f"simudy {type(g).__name__} {type(a).__name__}": simudy(g, a)
    for g in (Reverse(), Mixed(), Traced(), Factored())
    for a in (Direct(), Recompute(8))
}
PEERS = {
    "flat unroll": flat,
    "higher": higher_loop,
    "torchopt MetaSGD": torchopt_meta,
    "torchopt sgd": torchopt_functional,
}
JAX = {"jax scan": False, "jax scan remat": True} if find_spec("optax") and find_spec("jax") else {}
METHODS = {**OURS, **PEERS, **JAX}
Found = dict[str, tuple[float, int, float]]  # seconds, bytes and error, by method


def image_gradient(method: str, task: Task) -> Tensor:
    """One outer iteration."""
    if method in JAX:
        import jax_peer

        return jax_peer.image_gradient(task, LR, remat=JAX[method])
    return torch.autograd.grad(METHODS[method](task), task.images)[0]


def error(method: str, task: Task, exact: Tensor) -> float:
    """Relative distance of the gradient from the one in float64."""
    return float((image_gradient(method, task).double() - exact).norm() / exact.norm())


def peak(case: str, steps: int, method: str, device: str) -> int:
    """Bytes of the first outer iteration in this process, warmed up on something tiny; recording
    counts.
    """
    about = task(case, steps, device=device)
    if method in JAX:
        import jax_peer

        return jax_peer.peak_bytes(about, LR, remat=JAX[method])
    image_gradient(method, task("tiny", 2, device=device))
    return measure.peak_bytes(lambda: image_gradient(method, about), device=device)


def compare(case: str, steps: int, *, methods: Sequence[str], device: str, repeats: int) -> Found:
    """Seconds, bytes and error of each of ``methods``."""
    exact = image_gradient(
        "simudy Reverse Recompute", task(case, steps, device=device, dtype=torch.float64)
    )
    about = task(case, steps, device=device)
    errors = {method: error(method, about, exact) for method in methods}
    seconds = times(about, methods=methods, device=device, repeats=repeats)
    common = ["--cases", case, "--steps", str(steps), "--device", device, "--peak-of"]
    peaks = {method: measure.in_own_process(__file__, [*common, method]) for method in methods}
    return {method: (seconds[method], peaks[method], errors[method]) for method in methods}


def times(about: Task, *, methods: Sequence[str], device: str, repeats: int) -> dict[str, float]:
    """Seconds of each of ``methods``, taking turns."""
    runs = {method: lambda method=method: image_gradient(method, about) for method in methods}
    return measure.side_by_side(runs, repeats=repeats, device=device)


def report(found: Found) -> str:
    rows = [[m, f"{s:.3f}", f"{b / measure.MIB:.0f}", f"{e:.1e}"] for m, (s, b, e) in found.items()]
    table = measure.markdown(
        ["method", "s per outer iteration", "peak MiB", "error against float64"], rows
    )
    fastest, least = (
        [min(found.keys() & kind.keys(), key=lambda m: found[m][i]) for kind in (OURS, PEERS)]
        for i in (0, 1)
    )
    (ours, peer), (lean, least_peer) = fastest, least
    time, memory = found[ours][0] / found[peer][0], found[lean][1] / found[least_peer][1]
    return (
        f"{table}\n\nTime: {ours} takes {time:.2f} of the fastest peer ({peer}). "
        f"Memory: {lean} takes {memory:.2f} of the least peer ({least_peer})."
        + "".join(
            f" {j} takes {found[j][0] / found[ours][0]:.2f} of {ours}." for j in JAX if j in found
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="*", choices=SIZES, default=["mlp", "conv"])
    parser.add_argument("--steps", nargs="*", type=int, default=[4, 16, 64])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--times-only", action="store_true", help="no memory, no errors")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, default=list(METHODS), help="of both kinds"
    )
    parser.add_argument(
        "--peak-of", choices=METHODS, help="print the peak of one method, in bytes, and stop"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")  # the peers' deprecations
    if args.peak_of:
        print(json.dumps(peak(args.cases[0], args.steps[0], args.peak_of, args.device)))
        return
    for case in args.cases:
        for steps in args.steps:
            if args.times_only:
                about = task(case, steps, device=args.device)
                found = times(about, methods=args.methods, device=args.device, repeats=args.repeats)
                rows = [[method, f"{seconds:.3f}"] for method, seconds in found.items()]
                table = measure.markdown(["method", "s per outer iteration"], rows)
                print(f"\n### {case}, {steps} steps, {args.device}\n\n{table}", flush=True)
                continue
            found = compare(
                case, steps, methods=args.methods, device=args.device, repeats=args.repeats
            )
            print(f"\n### {case}, {steps} steps, {args.device}\n\n{report(found)}", flush=True)


if __name__ == "__main__":
    main()
