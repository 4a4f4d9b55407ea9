"""A frozen BatchNorm is folded into the convolution before it: the same function and derivatives,
or it stays.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from simudy import SGD, StatelessModel, simulate
from simudy.dynamics import tree
from simudy.dynamics.model.batchnorm import fold_batchnorm
from simudy.victim.models import ResNet


def settled(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, with statistics and affine parameters unlike those of a new
    layer.
    """
    generator = torch.Generator().manual_seed(0)
    for layer in module.double().eval().modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.running_var is not None:
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            for parameter in layer.parameters():
                parameter.data.normal_(generator=generator)
    return module


def folded(module: nn.Module) -> int:
    """How many of its norms ``fold_batchnorm`` takes out."""
    module = copy.deepcopy(module)
    fold_batchnorm(module)
    return sum(
        "forward" in vars(layer)
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase)
    )


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CASES = {
    "plain": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), 1),
    "no bias, grouped, strided": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(4)
        ),
        1,
    ),
    "padded by reflection": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(3)
        ),
        1,
    ),
    "no affine parameters": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False)),
        1,
    ),
    "without statistics": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)),
        0,
    ),
    "not after a convolution": (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3)), 0),
    "after a transposed one": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.BatchNorm2d(3)),
        0,
    ),
    "ResNet-18": (lambda: ResNet((2, 6, 6), 3, width=4), 20),
    "ResNet-50": (lambda: ResNet((2, 6, 6), 3, depth=50, width=2), 53),
}


@pytest.mark.parametrize("case", CASES)
def test_the_function_stays_the_same(case):
    make, expected = CASES[case]
    torch.manual_seed(0)
    module = settled(make())
    assert folded(module) == expected
    model, x = StatelessModel(module), images(2, 2, 6, 6)
    torch.testing.assert_close(model(model.params, x), module(x))


def test_the_run_and_its_derivatives_stay_the_same():
    """With respect to images and every parameter, γ and β among them, against the loop on the
    module as it is.
    """
    torch.manual_seed(0)
    module = settled(ResNet((2, 6, 6), 3, width=4))
    model, x, y = StatelessModel(module), images(2, 2, 6, 6).requires_grad_(), torch.tensor([0, 1])
    start = {k: p.clone().requires_grad_() for k, p in model.params.items()}
    wanted = [x, *start.values()]
    ours = tree.norm(tree.sub(simulate(model.loss, start, [(x, y)] * 3, SGD(lr=0.1)), model.params))

    theta = start
    for _ in range(3):
        loss = nn.functional.cross_entropy(torch.func.functional_call(module, theta, (x,)), y)
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {k: p - 0.1 * g for (k, p), g in zip(theta.items(), grads, strict=True)}
    plain = tree.norm(tree.sub(theta, model.params))
    for a, b in zip(
        torch.autograd.grad(ours, wanted), torch.autograd.grad(plain, wanted), strict=True
    ):
        torch.testing.assert_close(a, b)


class Shared(nn.Module):
    """One convolution before two norms; or its output used twice."""

    def __init__(self, *, branch: bool) -> None:
        super().__init__()
        self.convolution, self.a, self.b = (
            nn.Conv2d(2, 2, 3, padding=1),
            nn.BatchNorm2d(2),
            nn.BatchNorm2d(2),
        )
        self.branch = branch

    def forward(self, x):
        if self.branch:
            x = self.convolution(x)
            return self.a(x) + x
        return self.b(self.convolution(self.a(self.convolution(x))))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))

    def forward(self, x):
        return self.body(x) if x.mean() > -100 else x


@pytest.mark.parametrize("module", [Shared(branch=True), Shared(branch=False), Untraceable()])
def test_what_cannot_be_folded_stays(module):
    assert folded(settled(module)) == 0
    model, x = StatelessModel(module), images(2, 2, 6, 6)
    torch.testing.assert_close(model(model.params, x), module(x))


def test_a_norm_in_train_mode_or_with_a_hook_stays():
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    assert folded(module) == 0
    module.eval()[0].register_forward_hook(lambda layer, args, output: output.mul(2))
    assert folded(module) == 0


def test_a_copy_of_the_model_folds_its_own_layers():
    """``to`` copies the module: its folded layers must read the copy's statistics, not the
    original's.
    """
    torch.manual_seed(0)
    module = settled(ResNet((2, 6, 6), 3, width=4))
    model, x = StatelessModel(module), images(2, 2, 6, 6)
    copied = model.to(torch.float32)
    torch.testing.assert_close(
        copied(copied.params, x.float()).double(), model(model.params, x), rtol=1e-4, atol=1e-4
    )
    model.buffers = {k: 2 * b for k, b in model.buffers.items()}
    assert not torch.allclose(
        copied(copied.params, x.float()).double(), model(model.params, x), 1e-3
    )
