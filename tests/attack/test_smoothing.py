"""ReLUs of the simulation rounded off: where, when, and with which derivative."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import train_victim
from torch import nn

from simudy import SGD, Evidence, Recipe, Recompute, SimudyError, simulate
from simudy.attack.methods.simudy import Simudy, SimudyProblem
from simudy.dynamics.gradient import Factored, Gradient, Mixed, Reverse, Traced
from simudy.dynamics.model.smoothed import Smoothed, SmoothedLoss, smoothed

SHAPE, CLASSES, N = (1, 4, 4), 3, 6

pytestmark = pytest.mark.usefixtures("float64")


def victim(activation: type[nn.Module] = nn.ReLU) -> Evidence:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 30), activation(), nn.Linear(30, 12), activation()
    )
    module.append(nn.Linear(12, CLASSES))
    images, labels = torch.randn(N, *SHAPE), torch.arange(N) % CLASSES
    recipe = Recipe(SGD(lr=0.1, momentum=0.9), epochs=4, batch_size=3)
    return train_victim(module, recipe, images, labels, classes=CLASSES)


def problem(**settings) -> SimudyProblem:
    return Simudy(images="pixels", smooth=(0.4, 0.04), **settings).problem(victim(), seed=0)


def derivative(posed: SimudyProblem, progress: float) -> torch.Tensor:
    objective, _ = posed.objective(progress)
    return torch.autograd.grad(objective, posed.variables()["latent"])[0]


def end_of_a_loop(posed: SimudyProblem, sigma: float) -> list[torch.Tensor]:
    """The run in plain torch, its ReLUs smoothed and their gates frozen."""
    evidence, batches = posed.evidence, posed.dummy.batches(posed.recipe)
    module = evidence.model.module
    start = {k: w.clone().requires_grad_() for k, w in evidence.initial.items()}
    theta, moment = dict(start), {k: torch.zeros_like(w) for k, w in start.items()}
    for images, labels in batches:
        z = images
        for name, layer in module.named_children():
            if isinstance(layer, nn.Linear):
                z = F.linear(z, theta[f"{name}.weight"], theta[f"{name}.bias"])
            elif isinstance(layer, nn.ReLU):
                gate = torch.special.ndtr(z / sigma).detach()
                density = torch.distributions.Normal(0.0, 1.0).log_prob(z / sigma).exp()
                z = z * gate + (sigma * density).detach()
            else:
                z = layer(z)
        loss = F.cross_entropy(z, labels)
        slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        for name, slope in zip(theta, slopes, strict=True):
            moment[name] = 0.9 * moment[name] + slope
            theta[name] = theta[name] - 0.1 * moment[name]
    return [theta[k] - start[k] for k in start]


@pytest.mark.parametrize("progress, sigma", [(0.0, 0.4), (0.95, 0.04)])
def test_the_derivative_is_that_of_a_plain_loop_with_frozen_gates(progress: float, sigma: float):
    posed = problem()
    real = torch.cat([w.flatten() for w in posed.evidence.displacement.values()])
    moved = torch.cat([w.flatten() for w in end_of_a_loop(posed, sigma)])
    distance = 1 - F.cosine_similarity(moved, real, dim=0)
    expected = torch.autograd.grad(distance, posed.variables()["latent"])[0]
    torch.testing.assert_close(derivative(posed, progress), expected, rtol=1e-9, atol=1e-12)


def test_thawed_gates_have_the_whole_derivative():
    """By finite differences, which at a sharp kink would differ."""
    evidence = victim()
    posed = Simudy(images="pixels").problem(evidence, seed=0)
    batch = posed.dummy.batches(posed.recipe)[0]
    soft = SmoothedLoss(evidence.model.loss, 0.4)

    def outcome(images: torch.Tensor) -> torch.Tensor:
        end = simulate(soft, evidence.initial, [(images, batch[1])] * 3, SGD(lr=0.1))
        return torch.stack([w.square().sum() for w in end.values()]).sum()

    images = batch[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(outcome, images, eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    "gradient", [Reverse(), Mixed(), Traced(), Factored()], ids=lambda mode: type(mode).__name__
)
@pytest.mark.parametrize("adjoint", [None, Recompute(2)], ids=["Direct", "Recompute"])
def test_every_mode_replays_it_smoothed(gradient: Gradient, adjoint):
    """The backward pass of a replayed step happens after the forward pass has ended."""
    how = {"gradient": gradient, **({} if adjoint is None else {"adjoint": adjoint})}
    posed, plain = problem(**how), problem(gradient=Reverse())
    for progress in (0.0, 0.0, 0.95):  # of one σ, recorded once; and of another
        torch.testing.assert_close(derivative(posed, progress), derivative(plain, progress))


def test_sigma_falls_in_stages_of_one_objective_each():
    posed = problem()
    sigmas = [posed.stage(i / 100)[2] for i in range(100)]
    assert len(set(sigmas)) == 10 and sigmas == sorted(sigmas, reverse=True)
    assert (sigmas[0], sigmas[-1]) == (0.4, pytest.approx(0.04))


def test_the_end_of_the_run_itself_is_told_sharp():
    sharp = Simudy(images="pixels").problem(victim(), seed=0)
    for name, end in problem().simulate().items():
        torch.testing.assert_close(end, sharp.simulate()[name], rtol=0, atol=0)


@pytest.mark.parametrize("smooth", [(0.03, 0.3), (0.0, 0.0), (0.3, -1.0), (float("inf"), 1.0)])
def test_other_sigmas_are_refused(smooth: tuple[float, float]):
    with pytest.raises(SimudyError, match=r"Simudy\(smooth=.*give σ at first and in the end"):
        Simudy(smooth=smooth)


def test_a_network_without_relu_is_refused():
    with pytest.raises(SimudyError, match=r"calls none: set Simudy\(smooth=None\)"):
        Simudy(images="pixels", smooth=(0.3, 0.03)).problem(victim(nn.Tanh), seed=0)


@pytest.mark.parametrize(
    "call",
    [torch.relu, F.relu, lambda z: F.relu(input=z), nn.ReLU(), torch.Tensor.relu],
)
def test_every_way_to_call_it_is_smoothed(call):
    z = torch.linspace(-1, 1, 9)
    with Smoothed(0.5):
        torch.testing.assert_close(call(z), smoothed(z, 0.5))


@pytest.mark.parametrize(
    "call", [torch.relu_, lambda z: F.relu(z, inplace=True), nn.ReLU(True), torch.Tensor.relu_]
)
def test_in_place_stays_in_place_and_has_its_derivative(call):
    leaf = torch.linspace(-1, 1, 9, requires_grad=True)
    z = leaf * 1
    with Smoothed(0.5):
        found = call(z)
    expected = smoothed(leaf, 0.5)
    torch.testing.assert_close(z, expected)
    (mine,) = torch.autograd.grad(found.square().sum(), leaf)
    torch.testing.assert_close(mine, torch.autograd.grad(expected.square().sum(), leaf)[0])


def test_the_settings_file_hands_it_on():
    assert dataclasses.replace(Simudy(), smooth=[0.3, 0.03]).smooth == (0.3, 0.03)  # type: ignore[arg-type]
