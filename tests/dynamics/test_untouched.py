"""A parameter that a step's loss does not touch has ``grad`` None in torch, and is skipped: no
update, no weight decay, no count. One whose gradient is zero is not. A run must be that of the
torch loop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from simudy import StatelessModel, simulate
from simudy.dynamics import tree
from simudy.dynamics.adjoint import Direct, Recompute
from simudy.dynamics.gradient import Factored, Mixed, Reverse, Traced
from simudy.dynamics.optim import (
    SGD,
    Accumulated,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Averaged,
    Clipped,
    Groups,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rule,
    TorchOpt,
    from_torch,
    with_backend,
)
from simudy.errors import SimudyError

optim = torch.optim


pytestmark = pytest.mark.usefixtures("float64")


class Heads(nn.Module):
    """One head for an even number of rows, one for an odd one, one for nobody; ``dead`` is touched
    but never felt.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body, self.unused = nn.Linear(3, 4), nn.Linear(4, 2)
        self.even, self.odd = nn.Linear(4, 2), nn.Linear(4, 2)
        self.dead = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        head = self.odd if len(x) % 2 else self.even
        return head(self.body(x).tanh()) + 0.0 * self.dead


def _batches(steps: int = 20) -> list[tuple[Tensor, Tensor]]:
    """The odd head comes late, and seldom."""
    sizes = [5 if t % 5 == 3 else 4 for t in range(steps)]
    return [(torch.randn(n, 3), torch.randint(2, (n,))) for n in sizes]


def _torch_loop(module: nn.Module, optimizer: Any, batches: Any, clip: float | None = None) -> dict:
    for images, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(module(images), labels).backward()
        if clip is not None:
            clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return {name: p.detach() for name, p in module.named_parameters()}


def _assert_same(mine: dict, theirs: dict) -> None:
    assert mine.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-9, atol=1e-12, msg=name)


RULES: dict[str, tuple[Any, Callable]] = {
    "sgd": (SGD(0.1, weight_decay=0.1), lambda p: optim.SGD(p, 0.1, weight_decay=0.1)),
    "sgd momentum": (
        SGD(0.1, 0.9, 0.3, weight_decay=0.1),
        lambda p: optim.SGD(p, 0.1, 0.9, 0.3, weight_decay=0.1),
    ),
    "adam": (  # higher takes ε otherwise, so none to speak of
        Adam(0.05, eps=1e-14, weight_decay=0.1),
        lambda p: optim.Adam(p, 0.05, eps=1e-14, weight_decay=0.1),
    ),
    "adamw": (AdamW(0.05, amsgrad=True), lambda p: optim.AdamW(p, 0.05, amsgrad=True)),
    "nadam": (NAdam(0.05), lambda p: optim.NAdam(p, 0.05)),
    "radam": (RAdam(0.05), lambda p: optim.RAdam(p, 0.05)),
    "adamax": (Adamax(0.05), lambda p: optim.Adamax(p, 0.05)),
    "rmsprop": (
        RMSprop(0.05, momentum=0.5, centered=True, eps=1e-3),
        lambda p: optim.RMSprop(p, 0.05, momentum=0.5, centered=True, eps=1e-3),
    ),
    "adagrad": (
        Adagrad(0.1, lr_decay=0.1, weight_decay=0.1),
        lambda p: optim.Adagrad(p, 0.1, lr_decay=0.1, weight_decay=0.1),
    ),
    "adadelta": (Adadelta(weight_decay=0.1), lambda p: optim.Adadelta(p, weight_decay=0.1)),
}
MODES = {
    "reverse": (Direct(), Reverse()),
    "mixed": (Direct(), Mixed()),
    "traced": (Direct(), Traced()),
    "recompute reverse": (Recompute(every=3), Reverse()),
    "recompute mixed": (Recompute(every=3), Mixed()),
    "recompute traced": (Recompute(every=3), Traced()),
}


@pytest.mark.parametrize("name", RULES)
def test_what_a_step_does_not_touch_is_skipped_as_in_torch(name):
    rule, make = RULES[name]
    module, batches = Heads(), _batches()
    model = StatelessModel(module)
    end = simulate(model.loss, model.params, batches, rule)
    _assert_same(end, _torch_loop(module, make(module.parameters()), batches))
    assert torch.equal(end["unused.weight"], model.params["unused.weight"])
    if name == "sgd":
        assert not torch.equal(end["dead"], model.params["dead"])  # zero is not None


@pytest.mark.parametrize("backend", ["torchopt", "higher"])
@pytest.mark.parametrize("name", ["sgd", "sgd momentum", "adam", "adagrad", "adadelta"])
def test_other_back_ends_skip_it_too(name, backend):
    rule, make = RULES[name]
    module, batches = Heads(), _batches()
    model = StatelessModel(module)
    end = simulate(model.loss, model.params, batches, with_backend(rule, backend))
    _assert_same(end, _torch_loop(module, make(module.parameters()), batches))


def test_a_transformation_of_ones_own_is_not_taken_apart():
    import torchopt
    from torchopt.base import GradientTransformation

    def twice(updates, state, *, params=None, inplace=True):
        return [2 * x for x in updates], state

    double = GradientTransformation(lambda params: (), twice)
    rule = TorchOpt(lambda: torchopt.chain(torchopt.sgd(0.1), double))
    model = StatelessModel(Heads())
    with pytest.raises(SimudyError, match=r"does not touch 'unused\.weight'"):
        simulate(model.loss, model.params, _batches(2), rule)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["sgd momentum", "adamw"])
def test_every_mode_skips_and_differentiates_the_same_run(name, mode):
    rule, make = RULES[name]
    module, (adjoint, gradient) = Heads(), MODES[mode]
    batches = [(x.requires_grad_(), y) for x, y in _batches(8)]
    images = [x for x, _ in batches]
    model = StatelessModel(module)
    params = {k: p.requires_grad_() for k, p in model.params.items()}

    def outcome(images: list[Tensor], params: dict, **modes: Any) -> tuple[dict, Tensor]:
        paired = [(x, y) for x, (_, y) in zip(images, batches, strict=True)]
        end = simulate(model.loss, params, paired, rule, **modes)
        return end, sum(((p.sin() * p).sum() for p in end.values()), torch.zeros(()))

    end, value = outcome(images, params, adjoint=adjoint, gradient=gradient)
    found = torch.autograd.grad(value, [*images, *params.values()])
    theirs = _torch_loop(module, make(module.parameters()), [(x.detach(), y) for x, y in batches])
    _assert_same(tree.detach(end), theirs)

    along, h = [torch.randn_like(x) for x in [*images, *params.values()]], 1e-5
    ends = []
    for sign in (1, -1):
        moved = [
            (x + sign * h * d).detach()
            for x, d in zip([*images, *params.values()], along, strict=True)
        ]
        start = dict(zip(params, moved[len(images) :], strict=True))
        ends.append(outcome(moved[: len(images)], start)[1])
    slope = sum((g * d).sum() for g, d in zip(found, along, strict=True))
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("inner", [Reverse(), Mixed()])
def test_factored_weights_are_skipped_as_in_torch(inner):
    module, batches = Heads(), _batches()
    model, rule = StatelessModel(module), RULES["sgd momentum"][0]
    end = simulate(
        model.loss, model.params, batches, rule, gradient=Factored(inner=inner, layers="all")
    )
    dense = {k: v.dense() if hasattr(v, "dense") else v for k, v in end.items()}
    _assert_same(dense, _torch_loop(module, RULES["sgd momentum"][1](module.parameters()), batches))


def test_a_batch_of_runs_skips_as_each_run_does():
    model, batches = StatelessModel(Heads()), _batches(6)
    shifts = torch.tensor([0.0, 0.3])

    def run(shift: Tensor) -> dict:
        return simulate(model.loss, model.params, [(x + shift, y) for x, y in batches], AdamW(0.1))

    together = torch.func.vmap(run)(shifts)
    for i, shift in enumerate(shifts):
        _assert_same({k: v[i] for k, v in together.items()}, run(shift))


def test_clipping_accumulating_averaging_and_groups_skip_as_in_torch():
    module, batches = Heads(), _batches(18)
    model = StatelessModel(module)
    rule = Groups(
        {
            "body.*": Clipped(SGD(0.1, 0.9), max_norm=0.1),
            "unused.*": Clipped(SGD(0.1, weight_decay=0.1), max_norm=0.1),
            "*": Adam(0.05, weight_decay=0.1),
        }
    )
    wrapped = Averaged(Accumulated(rule, every=3), decay=None, start=2)
    end = simulate(model.loss, model.params, batches, wrapped)

    inner = optim.SGD(module.body.parameters(), 0.1, 0.9)
    rest = [p for n, p in module.named_parameters() if not n.startswith("body")]
    outer, kept = optim.Adam(rest, 0.05, weight_decay=0.1), []
    for t, (images, labels) in enumerate(batches):
        (F.cross_entropy(module(images), labels) / 3).backward()
        if t % 3 == 2:
            clip_grad_norm_(module.body.parameters(), 0.1)
            for optimizer in (inner, outer):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        if t >= 2:
            kept.append({n: p.detach().clone() for n, p in module.named_parameters()})
    _assert_same(end, {n: torch.stack([k[n] for k in kept]).mean(0) for n in kept[0]})


def test_the_norm_that_clips_is_that_of_what_was_touched():
    module, batches = Heads(), _batches()
    model = StatelessModel(module)
    end = simulate(model.loss, model.params, batches, Clipped(AdamW(0.05), max_norm=0.1))
    _assert_same(
        end, _torch_loop(module, optim.AdamW(module.parameters(), 0.05), batches, clip=0.1)
    )


def test_muon_skips_matrices_and_vectors():
    model, batches = StatelessModel(Heads()), _batches(4)
    rule = Muon(0.1, weight_decay=0.1, others=AdamW(0.1))
    end = simulate(model.loss, model.params, batches[:3], rule)  # no odd batch yet
    assert torch.equal(end["odd.weight"], model.params["odd.weight"])
    assert torch.equal(end["odd.bias"], model.params["odd.bias"])
    both = simulate(model.loss, model.params, batches, rule)
    assert torch.equal(both["even.weight"], end["even.weight"])
    assert not torch.equal(both["odd.weight"], end["odd.weight"])


def test_a_live_optimizer_skips_as_in_torch():
    module, batches = Heads(), _batches()
    groups = [
        {"params": module.odd.parameters(), "weight_decay": 0.5},
        {"params": [*module.body.parameters(), *module.even.parameters()]},
        {"params": module.unused.parameters()},
    ]
    optimizer = optim.AdamW(groups, 0.05)
    model, rule = StatelessModel(module), from_torch(optimizer, module)
    end = simulate(model.loss, model.params, batches, rule)
    _assert_same(end, _torch_loop(copy.copy(module), optimizer, batches))


class Blind(torch.autograd.Function):
    """Hands its second argument no gradient at all, as None."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad, None


@pytest.mark.parametrize("gradient", [Reverse(), Traced()])
def test_a_gradient_of_none_is_no_gradient_of_zero(gradient):
    params = {k: torch.ones(2) for k in "abcd"}

    def loss(p: dict, batch: Tensor) -> Tensor:
        return (
            (Blind.apply(p["a"], p["b"]) * batch).sum() + p["c"].detach().sum() + 0 * p["d"].sum()
        )

    rule = SGD(1.0, weight_decay=0.5)
    end = simulate(loss, params, [torch.ones(2)] * 2, rule, gradient=gradient)
    assert [end[k][0].item() for k in "abcd"] == [-1.25, 1.0, 1.0, 0.25]


class Naive(Rule):
    """Written for gradients of every parameter."""

    def init(self, params: dict) -> None:
        return None

    def update(self, grads: dict, state: None, params: dict) -> tuple[dict, None]:
        return {name: p - 0.1 * grads[name] for name, p in params.items()}, None


class Modest(Naive):
    """Returns what it moves, and no more."""

    def update(self, grads: dict, state: None, params: dict) -> tuple[dict, None]:
        return {name: params[name] - 0.1 * g for name, g in grads.items()}, None


def test_a_rule_of_ones_own_is_told_or_served():
    model, batches = StatelessModel(Heads()), _batches(5)
    with pytest.raises(SimudyError, match=r"Naive asks for the gradient of 'unused\.weight'"):
        simulate(model.loss, model.params, batches, Naive())
    end = simulate(model.loss, model.params, batches, Modest())
    _assert_same(end, simulate(model.loss, model.params, batches, SGD(0.1)))


@pytest.mark.parametrize("gradient", [Reverse(), Mixed(), Traced(), Factored()])
def test_a_loss_that_depends_on_no_parameter_is_refused(gradient):
    frozen = StatelessModel(Heads().requires_grad_(False))
    closed_over = StatelessModel(Heads())

    def forgetful(params: dict, batch: Any) -> Tensor:
        return closed_over.loss(closed_over.params, batch)

    for loss, params in ((frozen.loss, frozen.params), (forgetful, closed_over.params)):
        with pytest.raises(SimudyError, match="depends on no parameter"):
            simulate(loss, params, _batches(2), SGD(), gradient=gradient)
