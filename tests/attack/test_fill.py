"""Saved states of optimizers and schedulers fill the recipe with what nobody typed, and the run so
understood lands where plain torch did.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from simudy import SGD, AdamW, Recipe, SimudyError, simulate
from simudy.attack.checkpoints.saved_optimizer import class_names
from simudy.attack.evidence import Evidence, evidence_from_weights

SHAPE, N, BATCH = (1, 4, 4), 4, 2
IMAGES = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.arange(N) % 3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def train(
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    scheduler: Callable[..., Any] | None = None,
    *,
    epochs: tuple[int, ...] = (5,),
    each_step: bool = False,
) -> list[dict[str, Any]]:
    """Checkpoints before and after each part of a plain torch loop."""
    module = net()
    rule = optimizer(module)
    rates = scheduler(rule) if scheduler else None

    def checkpoint() -> dict[str, Any]:
        held = {"net": module.state_dict(), "optimizer": rule.state_dict()}
        return copy.deepcopy({**held, "rates": rates.state_dict()} if rates else held)

    kept = [checkpoint()]
    for part in epochs:
        for _ in range(part):
            for i in range(0, N, BATCH):
                rule.zero_grad()
                loss = nn.functional.cross_entropy(
                    module(IMAGES[i : i + BATCH]), LABELS[i:][:BATCH]
                )
                loss.backward()
                rule.step()
                if rates and each_step:
                    rates.step()
            if rates and not each_step:
                rates.step()
        kept.append(checkpoint())
    return kept


def understood(
    before: dict[str, Any], after: dict[str, Any], *, typed: tuple[str, ...] = (), **said: Any
) -> Evidence:
    recipe = Recipe(**{"optimizer": SGD(), "epochs": 10, "batch_size": BATCH, **said})
    facts: dict[str, Any] = {"shape": SHAPE, "classes": 3, "n": N}
    return evidence_from_weights(net(), before, after, recipe=recipe, typed=set(typed), **facts)


def off(evidence: Evidence) -> float:
    """How far the true images land from the weights that torch published."""
    recipe = evidence.recipe
    batches, rules = recipe.collate(IMAGES, LABELS), recipe.rules(N)
    end = simulate(evidence.model.loss, evidence.initial, batches, rules)
    return max(float((end[k] - v).detach().abs().max()) for k, v in evidence.final.items())


def by_rank(module: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]


OPTIMIZERS = {
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.2, momentum=0.9, nesterov=True),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, betas=(0.8, 0.95)),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.3),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, alpha=0.8),
    "groups": lambda m: torch.optim.AdamW(by_rank(m), lr=0.01),
}
SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, [2, 3, 3], gamma=0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8, eta_min=1e-3),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=3),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.7),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, total_iters=9, power=2.0),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("going_on", [False, True])
def test_the_rule_is_read_off_its_state(kind, going_on):
    start, middle, end = train(OPTIMIZERS[kind], epochs=(5, 3))
    typed = {"typed": ("recipe.epochs",), "epochs": 3 if going_on else 5}
    evidence = understood(*((middle, end) if going_on else (start, middle)), **typed)
    assert off(evidence) < 1e-12
    assert "the optimizer was" in " ".join(evidence.notes["findings"])


def test_steps_that_were_counted_are_the_length():
    start, middle, end = train(OPTIMIZERS["adamw"], epochs=(5, 3))
    assert understood(start, middle).recipe.epochs == 5
    assert understood(middle, end).recipe.epochs == 3
    assert understood(middle, end, accumulate=2).recipe.epochs == 6
    with pytest.raises(SimudyError, match=r"took 10 batches .* the recipe has 8"):
        understood(start, middle, typed=("recipe.epochs",), epochs=4)
    with pytest.raises(SimudyError, match=r"took 5 batches .* no epochs of 2"):
        for state in middle["optimizer"]["state"].values():
            state["step"] = torch.tensor(5.0)
        understood(start, middle)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("each_step", [False, True])
def test_the_schedule_is_read_off_its_state(kind, each_step):
    run = train(OPTIMIZERS["groups"], SCHEDULERS[kind], epochs=(4, 3), each_step=each_step)
    for before, after in pairwise(run):
        evidence = understood(before, after)
        assert off(evidence) < 1e-12
        word = "step" if each_step else "epoch"
        assert f"stepped each {word}" in evidence.notes["findings"][-1]


def test_a_schedule_alone_tells_the_epochs():
    start, end = train(OPTIMIZERS["momentum"], SCHEDULERS["step"], epochs=(6,))
    evidence = understood(start, end)
    assert evidence.recipe.epochs == 6
    assert off(evidence) < 1e-12


def test_contradictions_are_refused():
    start, end = train(OPTIMIZERS["adamw"], SCHEDULERS["step"])
    with pytest.raises(SimudyError, match=r"has lr=0\.01, the recipe 0\.5: set AdamW\(lr=0\.01\)"):
        understood(start, end, typed=("inner.lr",), optimizer=SGD(lr=0.5))
    with pytest.raises(SimudyError, match=r"holds the state of AdamW, the recipe says SGD"):
        understood(start, end, typed=("inner._target_",))
    with pytest.raises(SimudyError, match=r"StepLR.* was stepped 5 times, the recipe has 3 epochs"):
        for state in end["optimizer"]["state"].values():
            del state["step"]
        understood(start, end, typed=("recipe.epochs",), epochs=3)


def test_what_a_state_does_not_tell_is_asked_for():
    start, end = train(OPTIMIZERS["momentum"], lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t))
    with pytest.raises(SimudyError, match=r"lr_lambdas.* does not tell how it was made"):
        understood(start, end)
    start, end = train(OPTIMIZERS["momentum"], SCHEDULERS["step"])
    end["rates"]["_last_lr"] = [0.17]
    with pytest.raises(SimudyError, match=r"StepLR stands at a rate of 0\.17, where it would have"):
        understood(start, end)
    start, end = train(lambda m: torch.optim.SGD(by_rank(m), lr=0.1))
    with pytest.raises(SimudyError, match=r"groups of 2 and 2 parameters, and does not tell which"):
        understood(start, end)


def test_groups_by_name():
    def named(module: nn.Module) -> torch.optim.Optimizer:
        own = list(module.named_parameters())
        return torch.optim.SGD([{"params": own[2:]}, {"params": own[:2], "lr": 0.3}], lr=0.1)

    start, end = train(named)
    assert off(understood(start, end, typed=("recipe.epochs",), epochs=5)) < 1e-12


def test_older_files_do_not_tell_adam_from_adamw():
    start, end = train(OPTIMIZERS["adamw"])
    for held in (start, end):
        del held["optimizer"]["param_groups"][0]["decoupled_weight_decay"]
    assert class_names(end["optimizer"]["param_groups"][0]) == ["Adam", "AdamW"]
    with pytest.raises(
        SimudyError, match=r"do not tell its class: say it, as in Recipe\(optimizer=AdamW\)"
    ):
        understood(start, end)
    told = understood(start, end, typed=("inner._target_",), optimizer=AdamW())
    assert off(told) < 1e-12


def test_nothing_is_filled_where_the_recipe_is_given():
    start, end = train(OPTIMIZERS["momentum"])
    facts: dict[str, Any] = {"shape": SHAPE, "classes": 3, "n": N}
    recipe = Recipe(SGD(lr=0.2), epochs=5, batch_size=BATCH)
    with pytest.raises(SimudyError, match=r"has momentum=0\.9, the recipe 0\.0"):
        evidence_from_weights(net(), start, end, recipe=recipe, **facts)
