"""How much weights determine of an image: in closed form where the network is linear, nothing where
the image does not matter.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from simudy import SGD, Recipe, StatelessModel
from simudy.analysis.exposure.bound import LinearisedRun, exposure
from simudy.analysis.exposure.spectrum import spectrum
from simudy.dynamics.model.smoothed import Smoothed

pytestmark = pytest.mark.usefixtures("float64")
SHAPE, CLASSES, N, LR = (1, 4, 4), 3, 3, 0.1
PRIOR = 0.25


def truth(n=N):
    torch.manual_seed(1)
    return torch.randn(n, *SHAPE), torch.arange(n) % CLASSES


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))


def linearised(module, recipe=None, *, noise=1e-3, smooth=0.0, scale=1.0):
    model, (images, labels) = StatelessModel(module), truth()
    return LinearisedRun(
        model.loss,
        model.params,
        images,
        labels,
        recipe or Recipe(SGD(lr=LR), epochs=1),
        noise={k: torch.full_like(v, noise) for k, v in model.params.items()},
        scale=torch.full((1, 1, 1), scale),
        smooth=smooth,
    )


def in_closed_form(index, noise):
    """Singular values of ∂(W − η/n Σ δxᵀ, b − η/n Σ δ)/∂x over the noise, δ = softmax(Wx + b) − y:
    dδ/dx = (diag p − ppᵀ) W.
    """
    module, (images, labels) = linear(), truth()
    weight, offset = (p.detach() for p in module[1].parameters())
    x = images[index].flatten()
    p = (weight @ x + offset).softmax(0)
    delta = p - nn.functional.one_hot(labels[index], CLASSES)
    by_x = (torch.diag(p) - torch.outer(p, p)) @ weight  # (classes, 16)
    of_weight = by_x[:, None, :] * x[None, :, None] + delta[:, None, None] * torch.eye(16)[None]
    jacobian = LR / N * torch.cat([of_weight.reshape(-1, 16), by_x])
    return torch.linalg.svdvals(jacobian / noise)


@pytest.mark.parametrize("noise", [1e-3, 5e-3, 3e-2])
def test_a_linear_network_in_closed_form(noise):
    run = linearised(linear(), noise=noise)
    for index in range(N):
        found = exposure(run, index, prior=PRIOR, starts=1, steps=16)
        told = in_closed_form(index, noise).square() * PRIOR**2
        bound = -10 * math.log10(float((PRIOR**2 / (1 + told)).mean()))
        assert found.psnr_bound == pytest.approx(bound, abs=1e-6)
        assert found.bits == pytest.approx(float(torch.log2(1 + told).sum()) / 2, abs=1e-6)
        assert found.dimensions == int((told > 1).sum())


def test_pixel_units():
    normalised, pixels = linearised(linear()), linearised(linear(), scale=4.0)
    along = torch.randn(16)
    torch.testing.assert_close(pixels.information(1, along), 16 * normalised.information(1, along))


def test_products_are_those_of_the_jacobian_by_autograd():
    """Two steps of momentum on a curved network, against a Jacobian taken the plain way."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, CLASSES))
    recipe, (images, labels) = Recipe(SGD(lr=LR, momentum=0.9), epochs=2), truth()

    def end(image):
        batch = images.clone()
        batch[1] = image
        params, velocity = list(module.parameters()), [0.0] * 4
        names = [name for name, _ in module.named_parameters()]
        for _ in range(2):
            logits = torch.func.functional_call(
                module, dict(zip(names, params, strict=True)), (batch,)
            )
            loss = nn.functional.cross_entropy(logits, labels)
            grads = torch.autograd.grad(loss, params, create_graph=True)
            velocity = [0.9 * v + g for v, g in zip(velocity, grads, strict=True)]
            params = [p - LR * v for p, v in zip(params, velocity, strict=True)]
        return torch.cat([p.flatten() for p in params]) / 1e-3

    jacobian = torch.autograd.functional.jacobian(end, images[1])
    assert isinstance(jacobian, torch.Tensor)
    jacobian = jacobian.reshape(-1, 16)
    along = torch.randn(16)
    found = linearised(module, recipe).information(1, along)
    torch.testing.assert_close(found, jacobian.mT @ (jacobian @ along))


@pytest.mark.parametrize("case", ["left out", "no rate", "hidden"])
def test_it_says_nothing_where_there_is_nothing(case):
    rest = [[0, 2]]
    run = {
        "left out": lambda: linearised(linear(), Recipe(SGD(lr=LR), epochs=1, order=rest)),
        "no rate": lambda: linearised(linear(), Recipe(SGD(lr=0.0), epochs=1)),
        "hidden": lambda: linearised(linear(), noise=1e3),
    }[case]()
    found = exposure(run, 1, prior=PRIOR, starts=2, steps=5)
    assert found.says_nothing
    assert found.psnr_bound == pytest.approx(-20 * math.log10(PRIOR), abs=1e-3)
    if case == "left out":
        assert not exposure(run, 0, prior=PRIOR, starts=2, steps=5).says_nothing


def test_a_few_products_bound_from_below():
    """Gauss's rule errs to one side: a higher PSNR, which no attack is wronged by."""
    torch.manual_seed(2)
    half = torch.randn(40, 40)
    matrix = half @ half.mT
    signs = spectrum(lambda v: matrix @ v, torch.zeros(40), starts=2, steps=19, seed=0)
    exact = torch.linalg.eigvalsh(matrix)
    assert signs.shape == (2, 2, 19)
    for _, counts in signs:
        torch.testing.assert_close(counts.sum(), torch.tensor(40.0))
    rng = torch.Generator().manual_seed(0)
    starts = torch.randint(0, 2, (2, 40), generator=rng).to(matrix) * 2 - 1
    for start, (values, counts) in zip(starts, signs, strict=True):
        share = start @ torch.linalg.solve(matrix + torch.eye(40), start)
        assert float((counts / (values + 1)).sum()) <= float(share) * (1 + 1e-9)
    many = spectrum(lambda v: matrix @ v, torch.zeros(40), starts=30, steps=1, seed=0)
    assert float((many[:, 0] * many[:, 1]).sum(1).mean()) == pytest.approx(
        float(exact.sum()), rel=0.2
    )


def test_smoothed_relu_is_the_mean_under_noise():
    z, sigma = torch.linspace(-1, 1, 9), 0.5
    with Smoothed(sigma):
        found = nn.ReLU()(z)
    nodes = torch.linspace(-8, 8, 40001)
    density = torch.exp(-0.5 * nodes.square()) / math.sqrt(2 * math.pi)
    mean = ((z[:, None] + sigma * nodes).clamp(min=0) * density).sum(1) * (nodes[1] - nodes[0])
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nn.ReLU()(z), z.clamp(min=0), rtol=0, atol=0)


def test_smoothing_reaches_every_step_of_the_run():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    sharp, soft = (linearised(module, smooth=s).final["1.weight"] for s in (0.0, 0.5))
    assert not torch.allclose(sharp, soft)
    tiny = linearised(module, smooth=1e-6).final["1.weight"]
    torch.testing.assert_close(tiny, sharp)
