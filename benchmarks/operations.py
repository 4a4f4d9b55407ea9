"""What exactness costs: layers by plain operations against torch's fused kernels.

``python benchmarks/operations.py`` prints, layer by layer, the time of one outer gradient through
four steps of SGD (Reverse, Direct), as simudy computes it and with torch's own operations, which
are wrong under vmap and to second order.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from measure import markdown, side_by_side
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from simudy import SGD, StatelessModel, simulate
from simudy.dynamics.model.operations import exact_operations


class Outputs(nn.Module):
    """A recurrent layer's outputs, without its last state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def conv(norm: Callable[[int], nn.Module]) -> nn.Module:
    blocks = [nn.Sequential(nn.Conv2d(c, 32, 3, padding=1), norm(32), nn.ReLU()) for c in (3, 32)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def series(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(10))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions with BatchNorm, train mode": (lambda: conv(nn.BatchNorm2d), (20, 3, 32, 32)),
    "convolutions with InstanceNorm": (
        lambda: conv(partial(nn.InstanceNorm2d, affine=True)),
        (20, 3, 32, 32),
    ),
    "TransformerEncoderLayer": (
        lambda: series(nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)),
        (20, 16, 64),
    ),
    "GRU": (lambda: series(Outputs(nn.GRU(64, 64, batch_first=True))), (20, 16, 64)),
    "LSTM": (lambda: series(Outputs(nn.LSTM(64, 64, batch_first=True))), (20, 16, 64)),
}


def outer_gradient(model: StatelessModel, images: Tensor, fused: bool) -> Any:
    labels = torch.arange(len(images)) % 10
    torchs = nullcontext if fused else exact_operations
    with (
        patch("simudy.dynamics.model.stateless.exact_operations", torchs),
        patch("simudy.dynamics.loss.exact_operations", torchs),
        sdpa_kernel(SDPBackend.MATH),
    ):
        end = simulate(model.loss, model.params, [(images, labels)] * 4, SGD(lr=0.1))
        return torch.autograd.grad(sum(p.square().sum() for p in end.values()), images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for name, (make, shape) in CASES.items():
        module, images = make(), torch.randn(shape, requires_grad=True)
        module(images.detach())
        model = StatelessModel(module)
        runs = {f: partial(outer_gradient, model, images, f) for f in (False, True)}
        ours, torchs = side_by_side(
            {str(f): run for f, run in runs.items()}, repeats=repeats
        ).values()
        rows.append([name, f"{ours:.3f}", f"{torchs:.3f}", f"{ours / torchs:.2f}"])
    print(markdown(["network", "plain, s", "fused, s", "ratio"], rows))


if __name__ == "__main__":
    main()
