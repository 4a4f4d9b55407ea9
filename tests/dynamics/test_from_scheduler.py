"""Live schedulers and loaders, taken as they stand: the run that follows is torch's own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler as scheduling
from torch.utils.data import DataLoader, TensorDataset
from unrolled import network

from simudy import (
    SGD,
    Direct,
    Mixed,
    Recompute,
    SimudyError,
    StatelessModel,
    from_scheduler,
    simulate,
)
from simudy.dynamics import tree
from simudy.dynamics.optim import Groups, Started, scheduled
from simudy.testing import directional

pytestmark = pytest.mark.usefixtures("float64")

optim = torch.optim
LABELS = torch.arange(6) % 3

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: scheduling.StepLR(o, 3, gamma=0.5),
    "Cosine": lambda o: scheduling.CosineAnnealingLR(o, 9),
    "Warm restarts": lambda o: scheduling.CosineAnnealingWarmRestarts(o, 4),
    "OneCycle": lambda o: scheduling.OneCycleLR(o, 0.2, total_steps=20),
    "Cyclic": lambda o: scheduling.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=False),
    "Lambdas": lambda o: scheduling.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1 / (1 + t)]),
    "Sequence": lambda o: scheduling.SequentialLR(
        o, [scheduling.LinearLR(o, 0.1, total_iters=6), scheduling.ExponentialLR(o, 0.8)], [6]
    ),
    "Chained": lambda o: scheduling.ChainedScheduler(
        [scheduling.ConstantLR(o, 0.5, 5), scheduling.ExponentialLR(o, 0.9)]
    ),
}


class Decaying(scheduling.LRScheduler):
    """One's own, which moves the weight decay as well."""

    def get_lr(self) -> Any:
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0.1 * (1 + self.last_epoch)
        return [rate / (1 + self.last_epoch) for rate in self.base_lrs]


SCHEDULERS |= {
    "One's own": Decaying,
    "SWA": lambda o: optim.swa_utils.SWALR(o, 0.05, 5),
    "Polynomial": lambda o: scheduling.PolynomialLR(o, 15, 2.0),
    "Momenta too": lambda o: scheduling.CyclicLR(o, 0.01, 0.1, 3, mode="triangular2"),
}
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda groups: optim.SGD(groups, lr=0.1, momentum=0.9),
    "AdamW": lambda groups: optim.AdamW(groups, lr=0.02),
    "a rate in a tensor": lambda groups: optim.Adam(groups, lr=torch.tensor(0.02), eps=1e-3),
}


def train(module: nn.Module, optimizer: Any, scheduler: Any, data: list, every: int = 1) -> None:
    for t, (x, labels) in enumerate(data, 1):
        optimizer.zero_grad()
        F.cross_entropy(module(x), labels).backward()
        optimizer.step()
        if t % every == 0:
            scheduler.step()


def assert_ends_alike(end: tree.Params, module: nn.Module) -> None:
    for name, p in module.named_parameters():
        torch.testing.assert_close(end[name], p.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_live_scheduler_goes_on_as_in_torch(name, kind):
    """At its start and in its midst, with two groups, moments and step counts included."""
    for before, every in ((0, 1), (4, 1), (4, 2)):
        module, data = network(), [(torch.randn(6, 4), LABELS) for _ in range(12)]
        groups = [{"params": module[0].parameters()}, {"params": module[2].parameters()}]
        optimizer = OPTIMIZERS[kind](groups)
        scheduler = SCHEDULERS[name](optimizer)
        train(module, optimizer, scheduler, data[:before])
        model = StatelessModel(module)
        state = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # SequentialLR's own, of its epochs
            rules = from_scheduler(scheduler, module, 8, every=every)
        assert str((optimizer.state_dict(), scheduler.state_dict())) == str(state)
        end = simulate(model.loss, model.params, data[before : before + 8], rules)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            train(module, optimizer, scheduler, data[before : before + 8], every)
        assert_ends_alike(end, module)


def test_groups_that_part_later_are_kept_apart_from_the_first():
    module = network()
    groups = [{"params": module[0].parameters()}, {"params": module[2].parameters()}]
    scheduler = SCHEDULERS["Lambdas"](optim.SGD(groups, lr=0.1))
    assert all(isinstance(rule, Groups) for rule in from_scheduler(scheduler, module, 3))
    one = scheduling.StepLR(optim.SGD(module.parameters(), lr=0.1, momentum=0.9), 2)
    assert all(isinstance(rule, SGD) for rule in from_scheduler(one, module, 3))
    train(module, one.optimizer, one, [(torch.randn(6, 4), LABELS)])
    assert all(isinstance(rule, Started) for rule in from_scheduler(one, module, 3))


@pytest.mark.parametrize("adjoint", [Direct(), Recompute(2)], ids=str)
def test_a_rate_is_learned_under_a_schedulers_factors(adjoint):
    module, lr = network(), torch.tensor(0.3)
    model, data = StatelessModel(module), [(torch.randn(6, 4), LABELS) for _ in range(5)]

    def outcome(at: list[Tensor], adjoint: Any = Direct()) -> Tensor:  # noqa: B008
        scheduler = scheduling.StepLR(optim.SGD(module.parameters(), lr=1.0), 2, gamma=0.5)
        rules = from_scheduler(scheduler, module, 5)
        rules = scheduled(rules[0], 5, lr=[at[0] * cast(SGD, rule).lr for rule in rules])
        end = simulate(model.loss, model.params, data, rules, adjoint=adjoint, gradient=Mixed())
        return end["0.weight"].sin().sum()

    wanted = lr.clone().requires_grad_()
    (slope,) = torch.autograd.grad(outcome([wanted], adjoint), wanted)
    expected = directional(outcome, [lr], [torch.ones(())], step=1e-5)
    assert float(slope) == pytest.approx(expected, rel=1e-7)


def test_what_no_simulation_can_know_is_refused():
    module = network()
    optimizer = optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(SimudyError, match="decides by a metric"):
        from_scheduler(scheduling.ReduceLROnPlateau(optimizer), module, 3)
    with pytest.raises(SimudyError, match="every=0"):
        from_scheduler(scheduling.StepLR(optimizer, 1), module, 3, every=0)


# Loaders


def loader(seed: int = 0) -> DataLoader:
    images = torch.randn(10, 4, generator=torch.Generator().manual_seed(7))
    data = TensorDataset(images, torch.arange(10) % 3)
    return DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("adjoint", [Direct(), Recompute(2)], ids=str)
def test_a_loader_is_gone_through_as_often_as_the_steps_ask(adjoint):
    module = network()
    model, epochs = StatelessModel(module), loader()
    lr = torch.tensor(0.1, requires_grad=True)
    end = simulate(model.loss, model.params, loader(), SGD(lr, 0.9), steps=7, adjoint=adjoint)
    batches = [batch for _ in range(3) for batch in epochs][:7]
    listed = simulate(model.loss, model.params, batches, SGD(lr, 0.9), adjoint=adjoint)
    assert all(torch.equal(p, listed[name]) for name, p in end.items())
    slopes = [torch.autograd.grad(e["0.weight"].sum(), lr)[0] for e in (end, listed)]
    assert slopes[0] == slopes[1] != 0
    optimizer = optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    train(module, optimizer, scheduling.ConstantLR(optimizer, 1.0), batches)
    assert_ends_alike(tree.detach(end), module)


def test_a_loader_that_draws_from_torchs_generator_is_no_random_loss():
    model, data = StatelessModel(network()), TensorDataset(torch.randn(6, 4), LABELS)
    ends = []
    for _ in range(2):
        torch.manual_seed(3)
        batches: Any = DataLoader(data, 2, shuffle=True)
        ends.append(simulate(model.loss, model.params, batches, SGD(0.1), steps=5)["0.bias"])
    assert torch.equal(*ends)


def test_lists_and_iterators_with_steps():
    model, batch = StatelessModel(network()), (torch.randn(6, 4), LABELS)

    def end(batches: Any, **ways: Any) -> Tensor:
        return simulate(model.loss, model.params, batches, SGD(0.1), **ways)["0.bias"]

    assert torch.equal(end([batch], steps=3), end([batch] * 3))
    assert torch.equal(end((batch for _ in range(9)), steps=3), end([batch] * 3))
    with pytest.raises(SimudyError, match="gave 2 of steps=3 and then no more"):
        end((batch for _ in range(2)), steps=3)
    with pytest.raises(SimudyError, match="gave 0 of steps=3"):
        end([], steps=3)
    with pytest.raises(SimudyError, match=r"are a generator.*steps=…"):
        end(batch for _ in range(2))
    with pytest.raises(SimudyError, match=r"are a DataLoader.*steps=…"):
        end(loader())
    with pytest.raises(SimudyError, match="steps=-1"):
        end([batch], steps=-1)


@pytest.mark.filterwarnings("ignore")  # torch's own, of the order of its steps
def test_a_scheduler_that_torch_itself_cannot_step_is_refused():
    module = network()
    optimizer = optim.SGD(module.parameters(), lr=0.1)
    parts = scheduling.ConstantLR(optimizer, 0.5, 1), SCHEDULERS["Chained"](optimizer)
    scheduler = scheduling.SequentialLR(optimizer, list(parts), [1])
    with pytest.raises(SimudyError, match="torch itself cannot step this SequentialLR"):
        from_scheduler(scheduler, module, 3)
