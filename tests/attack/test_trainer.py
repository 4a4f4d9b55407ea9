"""What a script saved beside the weights: its optimizer's settings and moments."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from simudy import SGD, Adam, AdamW, Clipped, Recipe, SimudyError, simulate
from simudy.attack.checkpoints.weights import load_weights
from simudy.attack.evidence import evidence_from_weights

SHAPE, CLASSES, STEPS = (1, 4, 4), 3, 5


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def data():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(4, *SHAPE, generator=rng), torch.arange(4) % CLASSES


def checkpoints(folder, make, *, before=4, frozen=(), scheduler=None):
    """Two files of one script, ``STEPS`` steps apart, the first after some."""
    module = network()
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    optimizer = make([p for p in module.parameters() if p.requires_grad])
    schedule = scheduler(optimizer) if scheduler else None
    images, labels = data()
    for count, file in ((before, "a.pt"), (STEPS, "b.pt")):
        for _ in range(count):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images), labels).backward()
            optimizer.step()
            if schedule:
                schedule.step()
        both = {"net": module.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(copy.deepcopy(both), folder / file)
    return load_weights(folder / "a.pt"), load_weights(folder / "b.pt")


def audit(files, rule, **options):
    recipe = Recipe(rule, epochs=STEPS, **options)
    return evidence_from_weights(network(), *files, recipe=recipe, shape=SHAPE, classes=3, n=4)


SGD_, ADAM, ADAMW = (
    partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    partial(torch.optim.Adam, lr=0.01),
    partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (SGD_, SGD(lr=0.1, momentum=0.9)),
        (ADAM, Adam(lr=0.01)),
        (ADAMW, AdamW(lr=0.01, weight_decay=0.1)),
        (SGD_, Clipped(SGD(lr=0.1, momentum=0.9), max_norm=1e3)),
    ],
)
@pytest.mark.parametrize("frozen", [(), ("1.weight", "1.bias")])
def test_a_run_goes_on_with_the_moments_of_the_first_file(tmp_path, make, rule, frozen):
    evidence = audit(checkpoints(tmp_path, make, frozen=frozen), rule)
    images, labels = data()
    recipe = evidence.recipe
    with torch.no_grad():
        batches = recipe.collate(images, labels)
        end = simulate(evidence.model.loss, evidence.initial, batches, recipe.rules(4))
    for name, published in evidence.final.items():
        torch.testing.assert_close(end[name], published, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "rule", "words"),
    [
        (SGD_, SGD(lr=0.1), r"optimizer has momentum=0.9, the recipe 0.0: set SGD\(momentum=0.9\)"),
        (SGD_, SGD(lr=0.2, momentum=0.9), r"has lr=0.1, the recipe 0.2: set SGD\(lr=0.1\)"),
        (
            SGD_,
            Adam(lr=0.1),
            r"holds the state of SGD, the recipe says Adam: set Recipe\(optimizer=SGD\)",
        ),
        (
            ADAM,
            SGD(lr=0.01),
            r"holds the state of Adam, the recipe says SGD: set Recipe\(optimizer=Adam\)",
        ),
        (ADAM, Adam(lr=0.01, beta1=0.5), r"has beta1=0.9, the recipe 0.5"),
    ],
)
def test_a_recipe_that_the_files_contradict(tmp_path, make, rule, words):
    with pytest.raises(SimudyError, match=words):
        audit(checkpoints(tmp_path, make), rule)


def test_a_rate_that_moved_needs_a_schedule(tmp_path):
    decay = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    files = checkpoints(tmp_path, SGD_, before=0, scheduler=decay)
    rule = SGD(lr=0.1, momentum=0.9)
    with pytest.raises(
        SimudyError, match=r"rate had moved from 0.1 to 0.003\d*: set Recipe\(sched"
    ):
        audit(files, rule)
    assert audit(files, rule, scheduler=decay).n == 4
    with pytest.raises(SimudyError, match=r"has lr=0.1, the recipe 0.3"):
        audit(files, SGD(lr=0.3, momentum=0.9), scheduler=decay)


def test_a_schedule_that_was_under_way_is_refused(tmp_path):
    decay = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    files = checkpoints(tmp_path, SGD_, before=2, scheduler=decay)
    rule = SGD(lr=0.1, momentum=0.9)
    with pytest.raises(SimudyError, match=r"schedule was under way, at a rate of 0.025"):
        audit(files, rule, scheduler=decay, scheduler_per="step")
    factors = [0.25 * 0.5**t for t in range(STEPS)]
    evidence = audit(files, rule, schedule=factors)
    images, labels = data()
    with torch.no_grad():
        batches, rules = evidence.recipe.collate(images, labels), evidence.recipe.rules(4)
        end = simulate(evidence.model.loss, evidence.initial, batches, rules)
    for name, published in evidence.final.items():
        torch.testing.assert_close(end[name], published, rtol=0, atol=1e-5)
