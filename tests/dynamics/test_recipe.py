"""A recipe is the run of a plain torch loop: rates, order, left-over batches, accumulation."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs
from torch.utils.data import DataLoader, TensorDataset

from simudy import SGD, AdamW, Recipe, SimudyError, StatelessModel, simulate
from simudy.attack.serial import from_plain, to_plain
from simudy.dynamics.optim import Groups

pytestmark = pytest.mark.usefixtures("float64")
N, BATCH, EPOCHS, SEED = 10, 4, 4, 7


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def data():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(N, 6, generator=rng, dtype=torch.float64), torch.arange(N) % 3


def loop(make, *, loader, scheduler=None, per="epoch", accumulate=1):
    """As people write it; returns the network and the rate at every step."""
    module, rates = network(), []
    optimizer = make(module)
    schedule = scheduler(optimizer) if scheduler else None
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(loader):
            (nn.functional.cross_entropy(module(x), y) / accumulate).backward()
            if (i + 1) % accumulate == 0:
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                optimizer.zero_grad()
                if schedule and per == "step":
                    schedule.step()
        if schedule and per == "epoch":
            schedule.step()
    return module, rates


def loaded(*, own=True, shuffle=True, drop_last=False, batch=BATCH):
    generator = torch.Generator().manual_seed(SEED) if own else None
    return DataLoader(
        TensorDataset(*data()), batch, shuffle=shuffle, drop_last=drop_last, generator=generator
    )


def off(module, recipe):
    """How far the simulated run ends from the loop's."""
    recipe = from_plain(to_plain(recipe))  # as it is saved beside the weights
    model = StatelessModel(network())
    images, labels = data()
    end = simulate(model.loss, model.params, recipe.collate(images, labels), recipe.rules(N))
    return max(float((end[k] - v).detach().abs().max()) for k, v in module.named_parameters())


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.1)


RULES = {sgd: SGD(lr=0.2, momentum=0.9), adamw: AdamW(lr=0.02, weight_decay=0.1)}
STEPS = EPOCHS * 3


@pytest.mark.parametrize("make", RULES)
@pytest.mark.parametrize(
    ("scheduler", "per"),
    [
        (partial(lrs.StepLR, step_size=2, gamma=0.3), "epoch"),
        (partial(lrs.StepLR, step_size=2, gamma=0.8), "step"),
        (partial(lrs.MultiStepLR, milestones=[1, 3]), "epoch"),
        (partial(lrs.ExponentialLR, gamma=0.7), "step"),
        (partial(lrs.CosineAnnealingLR, T_max=EPOCHS, eta_min=0.01), "epoch"),
        (partial(lrs.CosineAnnealingWarmRestarts, T_0=5), "step"),
        (partial(lrs.LinearLR, total_iters=5), "step"),
        (partial(lrs.PolynomialLR, total_iters=9, power=2.0), "step"),
        (partial(lrs.OneCycleLR, max_lr=0.5, total_steps=STEPS), "step"),
        (partial(lrs.CyclicLR, base_lr=0.01, max_lr=0.3, step_size_up=3), "step"),
    ],
)
def test_a_scheduler_of_torch(make, scheduler, per):
    module, _ = loop(make, loader=loaded(), scheduler=scheduler, per=per)
    recipe = Recipe(RULES[make], EPOCHS, BATCH, order="torch", seed=SEED)
    recipe.scheduler, recipe.scheduler_per = scheduler, per
    assert off(module, recipe) < 1e-10


def test_a_scheduler_moves_the_groups_each_by_itself():
    def make(module):
        groups = [
            {"params": module[0].parameters(), "lr": 0.1},
            {"params": module[2].parameters(), "lr": 0.4, "momentum": 0.5},
        ]
        return torch.optim.SGD(groups)

    scheduler = partial(lrs.CosineAnnealingLR, T_max=9, eta_min=0.05)
    module, _ = loop(make, loader=loaded(), scheduler=scheduler, per="step")
    rule = Groups({"0.*": SGD(lr=0.1), "2.*": SGD(lr=0.4, momentum=0.5)})
    recipe = Recipe(rule, EPOCHS, BATCH, order="torch", seed=SEED, scheduler_per="step")
    recipe.scheduler = scheduler
    assert off(module, recipe) < 1e-10


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("order", ["torch", "torch_global", None, "epochs", "batches"])
def test_the_order_of_a_loader(order, drop_last):
    loader = loaded(own=order != "torch_global", shuffle=order is not None, drop_last=drop_last)
    torch.manual_seed(SEED)  # reset below, right before the loop
    network()
    torch.manual_seed(SEED)
    seen = [list(loader) for _ in range(EPOCHS)]
    module = network()
    optimizer = sgd(module)
    for x, y in (batch for epoch in seen for batch in epoch):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    images, rows = data()[0], order
    if order in ("epochs", "batches"):
        index = [[[int((images == x).all(1).nonzero()) for x in b[0]] for b in e] for e in seen]
        rows = [b for e in index for b in e]
        if order == "epochs":
            rows = [[i for b in e for i in b] for e in index]
    said = {"drop_last": drop_last, "seed": SEED, "order": rows}
    recipe = Recipe(RULES[sgd], EPOCHS, BATCH, **said)
    assert off(module, recipe) < 1e-10
    assert recipe.steps(N) == len(recipe.batches(N)) == EPOCHS * (2 if drop_last else 3)


@pytest.mark.parametrize("per", ["epoch", "step"])
def test_accumulation(per):
    """Five batches an epoch of two images; a step every five, and the schedule with it."""
    loader = loaded(batch=2)
    scheduler = partial(lrs.ExponentialLR, gamma=0.5)
    module, rates = loop(sgd, loader=loader, scheduler=scheduler, per=per, accumulate=5)
    recipe = Recipe(RULES[sgd], EPOCHS, 2, order="torch", seed=SEED, accumulate=5)
    recipe.scheduler, recipe.scheduler_per = scheduler, per
    assert len(rates) == EPOCHS and off(module, recipe) < 1e-10
    with pytest.raises(SimudyError, match=r"no 4 epochs of equal length, a multiple"):
        Recipe(epochs=4, batch_size=2, accumulate=2).rules(N)


def test_what_cannot_be_is_refused():
    with pytest.raises(SimudyError, match="decides by a metric"):
        Recipe(scheduler=lrs.ReduceLROnPlateau).rules(4)
    with pytest.raises(SimudyError, match="cannot be made"):
        Recipe(scheduler=lrs.StepLR).rules(4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SimudyError, match="both set the rates"):
        Recipe(scheduler=partial(lrs.StepLR, step_size=1), schedule=[1.0])
    with pytest.raises(SimudyError, match=r"leave Recipe\(shuffle=…\) out"):
        Recipe(order="torch", shuffle=True)
    with pytest.raises(SimudyError, match="images beyond the 3 there are"):
        Recipe(order=[[0, 3]]).batches(3)
    with pytest.raises(SimudyError, match="leaves no batch of 8 of 4 images"):
        Recipe(batch_size=8, drop_last=True).batches(4)
    with pytest.raises(SimudyError, match=r"accumulate=0\): give 1 or more"):
        Recipe(accumulate=0)


def test_a_learned_rate_goes_through_the_schedule():
    lr = torch.tensor(0.2, requires_grad=True)
    recipe = Recipe(SGD(lr=lr), EPOCHS, scheduler=partial(lrs.StepLR, step_size=1, gamma=0.5))
    total = sum((rule.lr for rule in recipe.rules(N)), torch.zeros(()))
    assert float(torch.autograd.grad(total, lr)[0]) == pytest.approx(1.875)
    assert copy.deepcopy(recipe).steps(N) == EPOCHS
