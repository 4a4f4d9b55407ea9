"""The number of training images: by rank where the first layer is linear, by contribution
elsewhere.
"""

import dataclasses

import pytest
import torch
from conftest import train_victim
from torch import Tensor, nn

from simudy.attack.evidence import Evidence
from simudy.attack.methods.simudy import Simudy, SimudyProblem
from simudy.attack.size import contributions, keep_top, matched_table, rank_estimate
from simudy.dynamics import tree
from simudy.dynamics.optim import SGD, Adam
from simudy.dynamics.recipe import Recipe
from simudy.dynamics.simulate import simulate
from simudy.errors import SimudyError

SHAPE, CLASSES = (1, 4, 4), 3


pytestmark = pytest.mark.usefixtures("float64")


def victim(
    module: nn.Module | None = None, *, n: int = 5, **recipe: object
) -> tuple[Evidence, Tensor, Tensor]:
    torch.manual_seed(0)
    module = module or nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, CLASSES)
    )
    images, labels = torch.randn(n, *SHAPE), torch.arange(n) % CLASSES
    made = Recipe(**{"optimizer": SGD(lr=0.1), "epochs": 4, **recipe})
    return train_victim(module, made, images, labels, classes=CLASSES), images, labels


def problem_of(evidence: Evidence, *, n: int, seed: int = 0) -> SimudyProblem:
    return Simudy(images="pixels", n=n).problem(evidence, seed=seed)


def brute_force(problem: SimudyProblem) -> Tensor:
    """Every dummy's gradient, alone, at every step of a run whose steps are found again by
    ``simulate``.
    """
    evidence, recipe, n = problem.evidence, problem.recipe, len(problem.dummy.latent)
    loss, batches, rules = (
        evidence.model.loss,
        problem.dummy.batches(recipe),
        problem.dummy.rules(recipe),
    )
    totals = [tree.scale(0.0, evidence.initial) for _ in range(n)]
    for t, rows in enumerate(recipe.batches(n)):
        at = simulate(loss, evidence.initial, batches[:t], rules[:t])
        for i in rows.tolist():
            alone = (problem.dummy.latent[i : i + 1], problem.dummy.targets()[i : i + 1])
            share = tree.scale(rules[t].lr / len(rows), torch.func.grad(loss)(at, alone))
            totals[i] = tree.add(totals[i], share)
    return torch.stack([tree.norm(total) for total in totals]).detach()


RECIPES = {
    "one batch": {},
    "uneven batches": {"batch_size": 3},
    "momentum, shuffled": {
        "optimizer": SGD(lr=0.1, momentum=0.5),
        "batch_size": 2,
        "shuffle": True,
    },
    "decaying lr": {"schedule": [1.0, 0.5, 0.2, 0.1]},
    "Adam": {"optimizer": Adam(lr=0.01)},
}


@pytest.mark.parametrize("memory", [1.0, 1e-9])  # all at once, one at a time
@pytest.mark.parametrize("recipe", RECIPES)
def test_contributions_are_those_of_a_plain_loop(recipe: str, memory: float):
    evidence, *_ = victim(**RECIPES[recipe])
    problem = problem_of(evidence, n=5)
    torch.testing.assert_close(contributions(problem, memory=memory), brute_force(problem))


def test_contributions_under_batch_statistics_add_up_to_the_displacement():
    """Where BatchNorm mixes a batch no image stands alone, but the shares still sum to the whole
    gradient.
    """
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES)
    )
    evidence, *_ = victim(module.train(), epochs=1)
    problem = problem_of(evidence, n=5)
    norms = contributions(problem)
    moved = tree.norm(tree.sub(problem.simulate(), evidence.initial)).detach()
    assert norms.sum() >= moved
    assert norms.square().sum().sqrt() < 10 * moved
    with torch.no_grad():  # a dummy that changes no other's statistics but its own loss
        shares = [share_of(problem, i) for i in range(5)]
    torch.testing.assert_close(norms, torch.stack([tree.norm(share) for share in shares]))


def share_of(problem: SimudyProblem, i: int) -> tree.Params:
    only = torch.zeros(5)
    only[i] = 0.1
    (images, labels), *_ = problem.dummy.batches(problem.recipe)
    return torch.func.grad(problem.evidence.model.loss)(
        problem.evidence.initial, (images, labels, only)
    )


def test_in_the_span_contributions_are_the_same():
    evidence, images, labels = victim()
    pixels = Simudy(images="pixels", labels=labels).problem(evidence, seed=0)
    span = Simudy(labels=labels, images="span").problem(evidence, seed=0)
    with torch.no_grad():
        pixels.dummy.latent.copy_(images)
        span.dummy.latent.copy_(span.dummy.coordinates.encode(images))
    torch.testing.assert_close(contributions(span), contributions(pixels))


def test_dummies_without_influence_are_ranked_last_and_dropped():
    """Surplus dummies whose soft labels are what the network says anyway move nothing at first, and
    little later.
    """
    evidence, images, labels = victim()
    problem = Simudy(images="pixels", n=8, labels="learned").problem(evidence, seed=0)
    surplus, kept = [1, 4, 6], [0, 2, 3, 5, 7]
    with torch.no_grad():
        problem.dummy.latent[kept] = images
        problem.dummy.labels[kept] = 50 * nn.functional.one_hot(labels, CLASSES).double()
        problem.dummy.labels[surplus] = evidence.model(evidence.initial, problem.images()[surplus])
    found = contributions(problem)
    assert found[surplus].max() < 0.5 * found[kept].min()
    top = keep_top(problem.images().detach(), found, 5)
    assert {tuple(image.flatten().tolist()) for image in top} == {
        tuple(image.flatten().tolist()) for image in images
    }
    assert torch.equal(keep_top(found, found, 8), found.sort(descending=True).values)


def test_the_table_parts_matched_from_surplus():
    table = matched_table(torch.tensor([1.0, 0.2, 3.0, 0.4]), torch.tensor([2, -1, 0]))
    assert table["matched"] == {"count": 2, "mean": 2.0, "min": 1.0, "max": 3.0}
    assert table["unmatched"] == pytest.approx({"count": 2, "mean": 0.3, "min": 0.2, "max": 0.4})
    assert matched_table(torch.ones(1), torch.tensor([0]))["unmatched"] == {"count": 0}


@pytest.mark.parametrize("n", [1, 4, 7])
def test_the_rank_is_the_number_of_images(n: int):
    found = rank_estimate(dataclasses.replace(victim(n=n)[0], n=None))
    assert found.n == n
    assert found.gap > 1e6
    assert (found.singular_values[: n + 1].diff() <= 0).all()


def test_a_full_rank_says_so():
    assert rank_estimate(victim(n=20)[0]).gap < 100


def test_the_rank_needs_a_first_layer_that_is_linear():
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES))
    with pytest.raises(SimudyError, match="first layer is not linear"):
        rank_estimate(victim(module)[0])


@pytest.mark.parametrize("n", [0, 4])
def test_keeping_more_than_there_are_is_refused(n: int):
    with pytest.raises(SimudyError, match="give 1 to 3"):
        keep_top(torch.zeros(3, 2), torch.ones(3), n)
