"""``from_torch``: a live optimizer, at any step and with any flags, goes on as in torch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from simudy import Recipe, StatelessModel, simulate
from simudy.attack.serial import from_plain, to_plain
from simudy.dynamics import tree
from simudy.dynamics.adjoint import Recompute
from simudy.dynamics.gradient import Factored, Mixed
from simudy.dynamics.optim import (
    SGD,
    Adam,
    AdamW,
    Clipped,
    Groups,
    Started,
    from_torch,
    hyperparameters,
    scheduled,
    with_backend,
)
from simudy.errors import SimudyError
from simudy.testing import check_optimizer, problems

optim = torch.optim


pytestmark = pytest.mark.usefixtures("float64")


class Net(nn.Module):
    """With a frozen layer, an unused one, and a head for odd batches alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fixed = nn.Linear(3, 4), nn.Linear(4, 4)
        self.odd, self.even = nn.Linear(4, 2), nn.Linear(4, 2)
        self.unused = nn.Linear(2, 2)
        self.fixed.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fixed(self.first(x).tanh()).tanh()
        return (self.odd if len(x) % 2 else self.even)(hidden)


def _batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    sizes = [5 if t % 3 == 2 else 4 for t in range(steps)]
    return [(torch.randn(n, 3), torch.randint(2, (n,))) for n in sizes]


def _train(module: nn.Module, optimizer: optim.Optimizer, batches: list) -> dict[str, Tensor]:
    for images, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(module(images), labels).backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in module.named_parameters()}


DECAY, FLAG = (0.0, 0.1), (False, True)
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {
        "lr": (0.1,),
        "momentum": (0.0, 0.9),
        "dampening": (0.0, 0.3),
        "nesterov": FLAG,
        "weight_decay": DECAY,
        "maximize": FLAG,
    },
    "Adam": {
        "amsgrad": FLAG,
        "weight_decay": DECAY,
        "decoupled_weight_decay": FLAG,
        "maximize": FLAG,
    },
    "AdamW": {"amsgrad": FLAG, "weight_decay": DECAY, "maximize": FLAG},
    "NAdam": {"weight_decay": DECAY, "decoupled_weight_decay": FLAG, "maximize": FLAG},
    "RAdam": {"weight_decay": DECAY, "decoupled_weight_decay": FLAG, "maximize": FLAG},
    "Adamax": {"weight_decay": DECAY, "maximize": FLAG},
    "RMSprop": {
        "momentum": (0.0, 0.9),
        "centered": FLAG,
        "weight_decay": DECAY,
        "maximize": FLAG,
        "eps": (1e-8, 1e-3),
    },
    "Adagrad": {
        "lr_decay": (0.0, 0.1),
        "initial_accumulator_value": (0.0, 0.1),
        "weight_decay": DECAY,
        "maximize": FLAG,
    },
    "Adadelta": {"weight_decay": DECAY, "maximize": FLAG},
    "ASGD": {"lambd": (1e-4, 0.1), "t0": (1.0, 1e6), "weight_decay": DECAY, "maximize": FLAG},
    "Rprop": {
        "etas": ((0.5, 1.2), (0.3, 1.5)),
        "step_sizes": ((1e-6, 50), (0.01, 0.03)),
        "maximize": FLAG,
    },
    "Adafactor": {
        "beta2_decay": (-0.8, -0.5),
        "eps": ((None, 1e-3), (1e-3, 0.1)),
        "d": (1.0, 1.5),
        "weight_decay": DECAY,
        "maximize": FLAG,
    },
}


def _optimizers(kind: str, module: nn.Module) -> Iterator[Any]:
    """An optimizer of ``module`` for each combination that torch accepts; the number of groups,
    whether the rate is a tensor and whether a layer is frozen vary along.
    """
    options = OPTIONS[kind]
    for i, values in enumerate(itertools.product(*options.values())):
        given = {"lr": 0.02, **dict(zip(options, values, strict=True))}
        if i % 3 == 0:
            given["lr"] = torch.tensor(given["lr"] if i % 2 else [given["lr"]])
        module.fixed.requires_grad_(i % 4 > 1)
        one = [p for name, p in module.named_parameters() if not name.startswith("even")]
        two = [p for name, p in module.named_parameters() if name.startswith("even")]
        more = {} if kind == "Rprop" else {"weight_decay": 0.3}
        groups = [{"params": one}, {"params": two, **more}]
        try:
            yield getattr(optim, kind)(groups if i % 2 else one + two, **given)
        except ValueError:  # Nesterov without momentum, or with dampening
            assert given["nesterov"]


@pytest.mark.parametrize("before", [0, 1, 2, 7])
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_live_optimizer_goes_on_as_in_torch(kind, before):
    start, batches = Net(), _batches(before + 20)
    for optimizer in _optimizers(kind, module := copy.deepcopy(start)):
        module.load_state_dict(start.state_dict())
        _train(module, optimizer, batches[:before])
        model, rule = StatelessModel(module), from_torch(optimizer, module)
        theirs = _train(module, optimizer, batches[before:])  # the rule is not moved by this
        end = simulate(model.loss, model.params, batches[before:], rule)
        for name, p in end.items():
            torch.testing.assert_close(p, theirs[name], rtol=1e-10, atol=1e-12, msg=str(optimizer))


@pytest.mark.parametrize("before", [0, 1, 7])
def test_muon_goes_on_as_in_torch_where_that_keeps_its_precision(before, monkeypatch):
    def orthogonal(grad: Tensor, coefficients: tuple, steps: int, eps: float) -> Tensor:
        left, values, right = torch.linalg.svd(grad, full_matrices=False)
        values = values / values.norm().clamp(min=eps)
        for _ in range(steps):
            values = sum(c * values ** (2 * i + 1) for i, c in enumerate(coefficients))
        return left * values @ right

    monkeypatch.setattr(optim._muon, "_zeropower_via_newtonschulz", orthogonal)
    batches = _batches(before + 20)
    for nesterov, fn in itertools.product(FLAG, (None, "original", "match_rms_adamw")):
        module = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False))
        options = {"lr": 0.02, "nesterov": nesterov, "adjust_lr_fn": fn}
        optimizer = optim.Muon(module.parameters(), **options)
        _train(module, optimizer, batches[:before])
        model, rule = StatelessModel(module), from_torch(optimizer, module)
        theirs = _train(module, optimizer, batches[before:])
        end = simulate(model.loss, model.params, batches[before:], rule)
        for name, p in end.items():
            torch.testing.assert_close(p, theirs[name], rtol=1e-9, atol=1e-12)


def test_what_does_not_change_the_values_is_ignored():
    module = nn.Linear(2, 2)
    for flag in ("foreach", "differentiable", "capturable"):
        options: dict[str, Any] = {flag: True}
        theirs = optim.Adam(module.parameters(), **options)
        assert from_torch(theirs, module) == Adam()


def test_a_rate_that_is_learned_stays_so_and_is_not_moved():
    module, lr = nn.Linear(3, 2), torch.tensor(0.1, requires_grad=True)
    optimizer = optim.SGD(module.parameters(), lr=lr)
    model, rule = StatelessModel(module), from_torch(optimizer, module)
    with torch.no_grad():
        lr.fill_(9.0)
    end = simulate(model.loss, model.params, _batches(2), rule, adjoint=Recompute())
    assert rule.lr.item() == pytest.approx(0.1)
    assert torch.autograd.grad(end["weight"].sum(), lr)[0] != 0


def test_names_are_no_patterns():
    module = nn.ModuleDict({"a[1]": nn.Linear(3, 2), "a1": nn.Linear(3, 2), "b?": nn.Linear(3, 2)})
    groups = [{"params": layer.parameters(), "lr": lr} for layer, lr in zip(
        module.values(), (0.1, 0.2, 0.3), strict=True
    )]  # fmt: skip
    rule = from_torch(optim.SGD(groups), module)
    params = {name: p.detach() for name, p in module.named_parameters()}
    ones = {name: torch.ones_like(p) for name, p in params.items()}
    new, _ = rule.update(ones, rule.init(params), params)
    moved = [(params[f"{k}.bias"] - new[f"{k}.bias"])[0].item() for k in ("a[1]", "a1", "b?")]
    assert moved == pytest.approx([0.1, 0.2, 0.3])


def test_frozen_parameters_stay_where_a_loss_of_ones_own_has_them():
    module = Net()
    rule = from_torch(optim.AdamW(module.parameters(), 0.1), module)
    assert isinstance(rule, Groups)
    model, params = StatelessModel(module), {n: p.detach() for n, p in module.named_parameters()}
    end = simulate(model.loss, params, _batches(3), rule)
    assert torch.equal(end["fixed.weight"], params["fixed.weight"])
    assert not torch.equal(end["first.weight"], params["first.weight"])


# Hooks


def _clip_first(optimizer: Any, *_: Any) -> None:
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.1)


@pytest.mark.parametrize("place", ["pre", "post", "global", "patched"])
def test_hooks_on_steps_are_refused(place):
    module = nn.Linear(2, 2)
    optimizer, handle = optim.SGD(module.parameters()), None
    if place == "pre":
        handle = optimizer.register_step_pre_hook(_clip_first)
    elif place == "post":
        handle = optimizer.register_step_post_hook(_clip_first)
    elif place == "global":
        handle = register_optimizer_step_pre_hook(_clip_first)
    else:
        optimizer.step = lambda: None
    try:
        with pytest.raises(SimudyError, match=r"Clipped\(from_torch"):
            from_torch(optimizer, module)
    finally:
        if handle:
            handle.remove()
    if handle:
        assert from_torch(optimizer, module) == SGD(lr=1e-3)


def test_a_scheduler_is_no_hook():
    module = nn.Linear(2, 2)
    optimizer = optim.SGD(module.parameters(), lr=0.5)
    schedule = optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    schedule.step()
    assert from_torch(optimizer, module).lr == pytest.approx(0.05)


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_gradients_are_refused(register):
    module = nn.Linear(2, 2)
    getattr(module.weight, register)(lambda g: None)
    with pytest.raises(SimudyError, match="'weight' has a hook on its gradient"):
        StatelessModel(module)
    with pytest.raises(SimudyError, match="'weight' has a hook on its gradient"):
        from_torch(optim.SGD(module.parameters()), module)


# Started


def _started(rule: Any) -> Started:
    """A rule with states of ``problems()``' networks: those of a few steps."""
    params = problems()[0].model.params
    state = rule.init(params)
    for _ in range(3):
        grads = {
            k: 0.1 * torch.cos(torch.arange(p.numel()) + 1.0).view_as(p) for k, p in params.items()
        }
        _, state = rule.update(grads, state, params)
    return Started(rule, state)


@pytest.mark.parametrize("rule", [SGD(0.1, 0.9), AdamW(0.01, eps=1e-3)])
def test_derivatives_pass_through_a_start(rule):
    started, problem = _started(rule), problems()[0]
    images = problem.inputs()["images"]
    states = tree.leaves(started.states)

    def outcome(inputs: list[Tensor], mode: Any) -> Tensor:
        moved = tree.rebuild(started, inputs[len(images) :])
        return problem.outcome(moved, {"images": inputs[: len(images)]}, mode)

    at = [x.clone().requires_grad_() for x in [*images, *states] if x.is_floating_point()]
    along = [x.detach() * torch.rand_like(x) for x in at]  # a square stays positive
    mode = Recompute(every=2), Mixed()
    grads = torch.autograd.grad(outcome(at, mode), at)
    slope = sum((g * d).sum() for g, d in zip(grads, along, strict=True))
    up, down = (
        outcome([(x + s * d).detach() for x, d in zip(at, along, strict=True)], mode)
        for s in (1e-5, -1e-5)
    )
    torch.testing.assert_close(slope, (up - down) / 2e-5, rtol=1e-6, atol=1e-9)


def test_a_start_is_no_hyper_parameter():
    rule = Started(SGD(lr=0.1, momentum=0.9), {"lr": torch.ones(2)})
    assert set(hyperparameters(rule)) == {f"rule/{k}" for k in hyperparameters(SGD())}
    later = scheduled(rule, 2, lr=[0.2, 0.1])[1]
    assert later.rule.lr == 0.1 and torch.equal(later.states["lr"], torch.ones(2))


def test_a_start_within_clipping():
    check_optimizer(Clipped(Started(SGD(0.1, 0.9)), max_norm=0.3))


def test_a_start_is_no_gradient_met():
    assert Started(SGD(0.1, 0.9)).spans_gradients
    started = Started(SGD(0.1, 0.9), {"weight": torch.ones(2, 3)})
    assert not started.spans_gradients
    model = StatelessModel(nn.Linear(3, 2))
    with pytest.raises(SimudyError, match="cannot be factored"):
        simulate(model.loss, model.params, _batches(2), started, gradient=Factored())


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda: Started(cast(Any, Clipped(SGD()))), "inside of wrappers"),
        (lambda: with_backend(Started(SGD()), "torchopt"), "inside of wrappers"),
        (
            lambda: Started(SGD(), {"w": torch.ones(2)}).init({"v": torch.ones(2)}),
            "of 'w' is of no parameter",
        ),
        (lambda: Started(SGD(), {"w": torch.ones(1)}).init({"w": torch.ones(2)}), "shape"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(act, message):
    with pytest.raises(SimudyError, match=message):
        act()


def test_a_start_is_not_written_to_json():
    assert from_plain(to_plain(Started(SGD(0.5)))) == Started(SGD(0.5))
    with pytest.raises(SimudyError, match="keep this evidence in memory"):
        to_plain(Recipe(optimizer=Started(SGD(0.5, 0.9), {"w": torch.ones(2)})))
