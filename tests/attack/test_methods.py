"""Each method is exact where its own model of the run is: there its objective is zero, and
searching leads there.
"""

import dataclasses
from typing import Any

import pytest
import torch
from conftest import train_victim
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from simudy.attack.evidence import Evidence
from simudy.attack.methods.kkt import KKT, negative_margin
from simudy.attack.methods.one_step import OneStep
from simudy.attack.methods.surrogate import Surrogate
from simudy.attack.methods.two_step import TwoStep
from simudy.attack.methods.weighted import Combination, Weighted
from simudy.attack.search import Outer, Search, reconstruct
from simudy.dynamics import tree
from simudy.dynamics.gradient import Mixed, Reverse
from simudy.dynamics.gradient.factored import Factored
from simudy.dynamics.model import StatelessModel
from simudy.dynamics.optim import SGD
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError

SHAPE, CLASSES, LR = (1, 4, 4), 3, 0.1
METHODS = {"one_step": OneStep, "two_step": TwoStep, "kkt": KKT, "surrogate": Surrogate}
PLAIN: dict[str, Any] = {"tv": 0.0, "box": 0.0, "dummies": 1.0}


pytestmark = pytest.mark.usefixtures("float64")


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Softplus(), nn.Linear(12, CLASSES))


def truth(n: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, *SHAPE, generator=generator).clamp(-2, 2), torch.arange(n) % CLASSES


def victim(*, epochs: int = 1, n: int = 3) -> Evidence:
    """A perceptron trained on ``truth`` by full-batch SGD."""
    recipe = Recipe(SGD(lr=LR), epochs=epochs)
    return train_victim(perceptron(), recipe, *truth(n), classes=CLASSES)


def explained_by_one_step() -> Evidence:
    """θ0 chosen so that θ0 − θf = Σ_i λ_i ∇ℓ_i(θf), λ = (0.1, 0.2, 0.3)."""
    model, (images, labels) = StatelessModel(perceptron()), truth()
    gradient = torch.func.grad(model.loss)(model.params, (images, labels, 3 * WEIGHTS.to(images)))
    return Evidence(
        model,
        tree.add(model.params, gradient),
        model.params,
        Recipe(SGD(lr=LR)),
        SHAPE,
        CLASSES,
        n=3,
    )


def explained_by_margins() -> Evidence:
    """A linear model whose weights are Σ_i λ_i ∇margin_i, λ = (0.1, 0.2, 0.3): its margins'
    gradients are constant.
    """
    model, (images, labels) = (
        StatelessModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))),
        truth(),
    )
    loss = negative_margin(model)
    final = torch.func.grad(loss)(model.params, (images, labels % 2, -3 * WEIGHTS.to(images)))
    return Evidence(model, model.params, final, Recipe(SGD(lr=LR)), SHAPE, 2, n=3)


WEIGHTS = torch.tensor([0.1, 0.2, 0.3])
EXACT = {
    "one_step": (explained_by_one_step, OneStep(labels=torch.arange(3), **PLAIN), WEIGHTS[None]),
    "two_step": (
        victim,
        TwoStep(labels=torch.arange(3), **PLAIN),
        torch.stack([torch.full((3,), LR / 3), torch.zeros(3)]),
    ),
    "kkt": (explained_by_margins, KKT(labels=torch.arange(3) % 2, **PLAIN), WEIGHTS[None]),
    "surrogate": (victim, Surrogate(labels=torch.arange(3), alpha=0.0, **PLAIN), None),
}


def at_truth(name: str) -> Combination:
    make, method, weights = EXACT[name]
    problem = method.problem(make(), seed=0)
    with torch.no_grad():
        problem.dummy.latent.copy_(truth()[0])
        if weights is not None:
            problem.extra["weights"].copy_(weights)
    return problem


@pytest.mark.parametrize("progress", [0.0, 0.99])
@pytest.mark.parametrize("name", EXACT)
def test_the_truth_has_objective_zero_where_the_method_is_exact(name: str, progress: float):
    problem = at_truth(name)
    objective, distance = problem.objective(progress)
    assert objective == distance
    assert abs(objective.item()) < 1e-12
    with torch.no_grad():
        problem.dummy.latent[0] += 0.1 * torch.randn(SHAPE)
    assert problem.objective(progress)[0].item() > 1e-4


@pytest.mark.parametrize(
    "gradient", [Reverse(), Mixed(), Factored(layers="all"), Factored(Mixed(), layers="all")]
)
@pytest.mark.parametrize("progress", [0.0, 0.99])
@pytest.mark.parametrize("name", METHODS)
def test_its_gradient_agrees_with_finite_differences(name: str, progress: float, gradient: object):
    problem = METHODS[name](tv=0.1, box=0.1, gradient=gradient).problem(victim(epochs=3), seed=3)
    leaves = problem.variables()
    grads = torch.autograd.grad(problem.objective(progress)[0], list(leaves.values()))
    for (variable, leaf), grad in zip(leaves.items(), grads, strict=True):
        direction, start = (
            torch.randn(leaf.shape, generator=torch.Generator().manual_seed(5)),
            leaf.detach().clone(),
        )

        def along(
            step: float, leaf: Tensor = leaf, start: Tensor = start, direction: Tensor = direction
        ) -> float:
            with torch.no_grad():
                leaf.copy_(start + step * direction)
            return problem.objective(progress)[0].item()

        numeric = (along(1e-6) - along(-1e-6)) / 2e-6
        along(0.0)
        assert (grad * direction).sum().item() == pytest.approx(numeric, rel=1e-5, abs=1e-9), (
            variable
        )


@pytest.mark.parametrize("name", METHODS)
def test_searching_from_noise_leads_towards_it(name: str):
    method = dataclasses.replace(EXACT[name][1], tv=1e-5, dummies=2.0)
    found = reconstruct(
        EXACT[name][0](), method=method, outer=Outer(lr=0.05, iterations=150, lrs=LRS[name])
    )
    assert found.objective < 0.3 * found.history[0]["objective"]
    assert found.images.shape == (6, *SHAPE)


LRS = {
    "one_step": {"weights": 0.01},
    "two_step": {"weights": 0.01},
    "kkt": {"weights": 0.01},
    "surrogate": {},
}


UNDO = {
    "two_step": (TwoStep(weights=(0.0, 0.1), images="span", **PLAIN), {"weights": 0.003}),
    "surrogate": (Surrogate(alpha=0.0, **PLAIN), {}),
}


@pytest.mark.parametrize("name", UNDO)
def test_one_step_of_training_is_undone(name: str):
    images, labels = truth()
    method, lrs = UNDO[name]
    method = dataclasses.replace(method, labels=labels)
    found = reconstruct(victim(), method=method, outer=Outer(lr=0.1, iterations=200, lrs=lrs))
    assert found.distance < 1e-3
    cosines = nn.functional.cosine_similarity(found.images.flatten(1), images.flatten(1))
    assert cosines.min() > 0.99  # λ and the length of an image trade off


def test_two_step_sums_over_both_ends_what_one_step_takes_at_the_last():
    evidence = victim(epochs=5)
    one, two = (
        method(labels="balanced").problem(evidence, seed=0) for method in (OneStep, TwoStep)
    )
    with torch.no_grad():
        two.extra["weights"][0] = 0.0
        two.extra["weights"][1] = one.extra["weights"][0]
    assert torch.equal(one.dummy.latent, two.dummy.latent)
    for name, value in one.combined().items():
        torch.testing.assert_close(two.combined()[name], value)


def test_the_surrogate_moves_along_the_line_between_the_ends():
    evidence = victim(epochs=5)
    problem = Surrogate(alpha=0.25).problem(evidence, seed=0)
    (at,) = problem.points()
    for name in at:
        expected = 0.75 * evidence.initial[name] + 0.25 * evidence.final[name]
        torch.testing.assert_close(at[name], expected)
    assert set(problem.variables()) == {"latent", "alpha"}
    assert set(Surrogate(alpha=1.0).problem(evidence, seed=0).variables()) == {"latent"}


def test_margins_are_those_of_a_plain_loop():
    evidence, (images, labels) = victim(), truth()
    logits, weights = evidence.model(evidence.final, images), torch.rand(3)
    margins = [
        z[y] - max(z[k] for k in range(CLASSES) if k != y)
        for z, y in zip(logits, labels, strict=True)
    ]
    loss = negative_margin(evidence.model)(evidence.final, (images, labels, weights))
    torch.testing.assert_close(loss, -(weights * torch.stack(margins)).mean())


def test_kkt_pushes_weights_above_their_minimum():
    problem = at_truth("kkt")
    with torch.no_grad():
        problem.extra["weights"][0, 0] = -0.1  # 0.15 below
    objective, distance = problem.objective(0.0)
    assert (objective - distance).item() == pytest.approx(5.0 * 0.15**2)


def test_kkt_does_not_see_the_initial_weights():
    evidence = victim(epochs=3)
    other = dataclasses.replace(evidence, initial=tree.map(torch.randn_like, evidence.initial))
    first, second = (KKT().problem(e, seed=0).objective(0.0)[0] for e in (evidence, other))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["one_step", "two_step"])
def test_the_best_iterate_is_a_late_one(name: str):
    """Turning from Euclidean distance to the cosine must not make an earlier iterate look
    better.
    """
    search = Search(
        METHODS[name]().problem(victim(epochs=3), seed=0), Outer(lr=0.01, iterations=100)
    )
    while search.status == "running":
        before = float(search.best["objective"])
        search.step()
        if search.iteration == 13:  # the first by cosine
            assert search.history[-1]["objective"] < before
    assert search.best["objective"] < search.history[12]["objective"]


@pytest.mark.parametrize("name", METHODS)
def test_dummies_and_labels_are_as_asked_and_drawn_with_the_seed(name: str):
    problem, again, other = (
        METHODS[name](dummies=2).problem(victim(), seed=seed) for seed in (0, 0, 1)
    )
    assert problem.images().shape == (6, *SHAPE)
    assert torch.bincount(problem.labels()).tolist() == [2, 2, 2]
    for variable, leaf in problem.variables().items():
        assert leaf.is_leaf
        assert leaf.requires_grad
        assert torch.equal(leaf, again.variables()[variable])
    assert not torch.equal(problem.images(), other.images())


def test_given_labels_are_dealt_out_again_to_the_surplus():
    problem = OneStep(dummies=2, labels=torch.tensor([2, 0, 1])).problem(victim(), seed=0)
    assert problem.labels().tolist() == [2, 0, 1, 2, 0, 1]


def test_learned_labels_receive_a_gradient():
    problem = OneStep(labels="learned").problem(victim(), seed=0)
    problem.objective(0.5)[0].backward()
    assert problem.variables()["labels"].grad.abs().min() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distance": "cos"}, "no distance 'cos': choose from cosine"),
        ({"images": "pixel"}, "no image mode 'pixel': choose from auto, pixels"),
        ({"dummies": 0.0}, "give the dummies per training image"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings: dict, message: str):
    with pytest.raises(SimudyError, match=message):
        OneStep(**settings)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (KKT(images="span"), r"set KKT\(images='pixels'\)"),
        (KKT(labels="learned"), r"set KKT\(labels='balanced'\)"),
        (Surrogate(alpha=1.5), r"in \[0, 1\]"),
        (OneStep(), r"set Method\(n=…\)"),
    ],
)
def test_settings_that_do_not_fit_the_evidence_are_refused(method: Weighted, message: str):
    evidence = dataclasses.replace(victim(), n=None)
    with pytest.raises(SimudyError, match=message):
        method.problem(evidence, seed=0)


@pytest.mark.parametrize("name", METHODS)
def test_the_yaml_says_what_the_class_says(name: str):
    with initialize_config_module("simudy.conf", version_base="1.3"):
        said = OmegaConf.to_container(compose(f"attack/{name}").attack)
    assert isinstance(said, dict) and None not in said.values()
    assert instantiate(said, _convert_="all") == METHODS[name]()
