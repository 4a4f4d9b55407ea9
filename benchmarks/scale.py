"""What an outer iteration costs, by the number of images and of weights.

Counted for every case, without computing it: multiply-adds of a simulated step and what is kept of
a run. Measured, one step each, as far as ``--most`` multiply-adds go.

python benchmarks/scale.py [--most 5e11] [--steps 20] [--images 20 100 500]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from measure import MIB, in_own_process, markdown, peak_bytes, side_by_side
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from simudy import SGD, Direct, Mixed, Recompute, Reverse, StatelessModel, simulate
from simudy.victim.models import ResNet, ViT

Shape = tuple[int, ...]
CIFAR, PICTURES = (3, 32, 32), (3, 224, 224)
NETS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "ResNet-18, width 16": (lambda: ResNet(CIFAR, 10, width=16), CIFAR),
    "ResNet-18": (lambda: ResNet(CIFAR, 10, width=64), CIFAR),
    "ResNet-50": (lambda: ResNet(CIFAR, 10, width=64, depth=50), CIFAR),
    "ViT-B/16": (lambda: ViT(PICTURES, 1000, patch=16, width=768, depth=12, heads=12), PICTURES),
}
# Passes as dear as a forward one that a step and its derivative take, the forward one included:
# a gradient is 3, its derivative by reverse mode 6 more, by forward over reverse 9.
PASSES = {"Reverse": 9, "Mixed": 12}


def counted(name: str) -> dict[str, float]:
    """Weights, multiply-adds and bytes of activations of one image's forward pass."""
    made, shape = NETS[name]
    with torch.device("meta"):
        net, image = made().eval(), torch.zeros(1, *shape)
    held: list[int] = []
    for layer in net.modules():  # a frozen BatchNorm is folded into the convolution before it
        if not list(layer.children()) and not isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda _, __, out: held.append(out.numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    weights = sum(p.numel() for p in net.parameters())
    return {"weights": weights, "macs": counter.get_total_flops() / 2, "activations": 4 * sum(held)}


def kept(name: str, n: int, steps: int, *, gradient: Any, adjoint: Any) -> float:
    """Bytes that an outer iteration works with, by the library's own estimate."""
    about = counted(name)
    theta, work = 4 * about["weights"], n * about["activations"]
    with torch.device("meta"):
        params = dict(NETS[name][0]().named_parameters())
    per_step = gradient.kept(params, work)
    return adjoint.kept(steps, per_step=per_step, params=theta) + 3 * (work + theta)


def step(name: str, n: int, gradient: Any, *, steps: int = 1) -> Callable[[], Tensor]:
    """The derivative of one simulated step, or of several, by the images."""
    torch.manual_seed(0)
    made, shape = NETS[name]
    model, images = StatelessModel(made().eval()), torch.randn(n, *shape, requires_grad=True)
    batch = images, torch.arange(n) % 10

    def run() -> Tensor:
        end = simulate(model.loss, model.params, [batch] * steps, SGD(lr=0.01), gradient=gradient)
        distance = sum(p.square().sum() for p in end.values())
        return torch.autograd.grad(distance, images)[0]

    return run


def row(name: str, n: int, *, steps: int, most: float) -> list[str]:
    """One case: counted, and measured where that is affordable."""
    about = counted(name)
    macs = {mode: passes * n * about["macs"] for mode, passes in PASSES.items()}
    modes = {"Reverse": (Reverse(), Direct()), "Mixed": (Mixed(), Recompute(5))}
    memory = {k: kept(name, n, steps, gradient=g, adjoint=a) for k, (g, a) in modes.items()}
    cells = [name, f"{about['weights'] / 1e6:.1f} M", str(n)]
    cells += [f"{macs[k] / 1e9:,.0f} G" for k in modes]
    cells += [f"{memory[k] / MIB / 1024:.1f} GiB" for k in modes]
    if macs["Reverse"] > most:
        return [*cells, "–", "–"]
    run = step(name, n, Reverse())
    seconds = side_by_side({name: run}, repeats=1)[name]
    peak = in_own_process(__file__, ["--peak-of", name, str(n)])
    return [*cells, f"{seconds:.2f} s", f"{peak / MIB:,.0f} MiB"]


def peak(name: str, n: int) -> int:
    """Most bytes that a step takes on top of the network; in a process of its own."""
    step(name, 1, Reverse())()  # warm
    return peak_bytes(step(name, n, Reverse()))


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told.add_argument("--most", type=float, default=5e11, help="multiply-adds to measure")
    told.add_argument("--steps", type=int, default=20)
    told.add_argument("--images", type=int, nargs="+", default=[20, 100, 500, 10_000])
    told.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    told.add_argument("--peak-of", nargs=2, metavar=("NET", "N"), help="for the script itself")
    said = told.parse_args()
    if said.peak_of:
        print(json.dumps(peak(said.peak_of[0], int(said.peak_of[1]))))
        return
    head = ["network", "weights", "n", "a step, Reverse", "Mixed"]
    head += [f"{said.steps} steps, Reverse", "Mixed, Recompute(5)", "a step", "its peak"]
    rows = []
    for name in said.nets:
        for n in said.images:
            rows.append(row(name, n, steps=said.steps, most=said.most))
            print(" | ".join(rows[-1]), flush=True)
    print(f"\n{markdown(head, rows)}")


if __name__ == "__main__":
    main()
