"""One table of rules drives everything: finite differences, purity, vmap and torch.optim, see
``check_optimizer``.
"""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import simudy.dynamics.optim as ours
from simudy.dynamics import tree
from simudy.dynamics.optim import (
    ASGD,
    SAM,
    SGD,
    Accumulated,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Averaged,
    Clipped,
    ClippedAdaptively,
    ClippedByValue,
    Groups,
    Lion,
    Lookahead,
    Muon,
    NAdam,
    Noised,
    PerTensor,
    RAdam,
    RMSprop,
    Rprop,
    ScheduleFreeSGD,
    Transformed,
    private,
)
from simudy.dynamics.simulate import simulate
from simudy.errors import SimudyError
from simudy.testing import check_optimizer, problems

optim = torch.optim
MOMENTUM = SGD(lr=0.1, momentum=0.9)


class ByHand:
    """An optimizer written out from a paper: ``move(state, p, g)`` returns the new parameter."""

    def __init__(self, named: list, move: Callable[[dict, Tensor, Tensor], Tensor]) -> None:
        self.params, self.move = [p for _, p in named], move
        self.states: list[dict[str, Any]] = [{} for _ in named]

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for p, state in zip(self.params, self.states, strict=True):
            p.copy_(self.move(state, p, p.grad))


def lion(named: list) -> ByHand:
    """Algorithm 2 of arXiv:2302.06675, with η = 0.01, λ = 0.1."""

    def move(state, p, g):
        m = state.get("m", torch.zeros_like(p))
        update = torch.sign(0.9 * m + 0.1 * g)
        state["m"] = 0.99 * m + 0.01 * g
        return p - 0.01 * (update + 0.1 * p)

    return ByHand(named, move)


def muon(named: list) -> ByHand:
    """Muon by singular values (NS only changes these), SGD for vectors; η = 0.02, λ = 0.1, μ =
    0.95, Nesterov.
    """

    def move(state, p, g):
        if p.ndim < 2:
            return p - 0.02 * g
        state["b"] = 0.95 * state.get("b", torch.zeros_like(p)) + 0.05 * g
        u, s, v = torch.linalg.svd(
            (0.05 * g + 0.95 * state["b"]).reshape(len(p), -1), full_matrices=False
        )
        s = s / s.norm()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        rows, columns = len(p), p[0].numel()
        return p * (1 - 0.02 * 0.1) - 0.02 * max(1, rows / columns) ** 0.5 * (u * s @ v).view_as(p)

    return ByHand(named, move)


def lookahead(named: list) -> ByHand:
    """Algorithm 1 of arXiv:1907.08610 around SGD, with η = 0.1, α = 0.4, k = 2."""

    def move(state, p, g):
        state["t"] = state.get("t", 0) + 1
        slow, fast = state.setdefault("slow", p.clone()), p - 0.1 * g
        if state["t"] % 2 == 0:
            fast = state["slow"] = slow + 0.4 * (fast - slow)
        return fast

    return ByHand(named, move)


def adaptively_clipped(named: list) -> ByHand:
    """Unit-wise clipping of arXiv:2102.06171 at λ = 0.02, ε = 1e-3, then SGD with η = 0.1."""

    def move(state, p, g):
        g = g.clone()
        for unit, weights in zip(*((g, p) if p.ndim > 1 else ([g], [p])), strict=True):
            largest = 0.02 * max(weights.norm().item(), 1e-3)
            if unit.norm() > largest:
                unit *= largest / unit.norm()
        return p - 0.1 * g

    return ByHand(named, move)


def before(clip: Callable[[list], Any]) -> Callable[[list], torch.optim.Optimizer]:
    """torch's SGD with momentum, clipping the gradients before each step."""

    def make(named):
        optimizer = optim.SGD(named, lr=0.1, momentum=0.9)
        optimizer.register_step_pre_hook(lambda *_: (clip([p for _, p in named]), None)[1])
        return optimizer

    return make


class Accumulating:
    """The usual loop of gradient accumulation, three micro-batches a step."""

    def __init__(self, named: list) -> None:
        self.inner, self.params, self.seen = (
            optim.SGD(named, lr=0.1, momentum=0.9),
            [p for _, p in named],
            0,
        )

    def zero_grad(self) -> None:
        if self.seen % 3 == 0:
            self.inner.zero_grad()

    def step(self) -> None:
        self.seen += 1
        if self.seen % 3 == 0:
            for p in self.params:
                p.grad /= 3
            self.inner.step()


def grouped(named: list) -> torch.optim.Optimizer:
    biases = [(n, p) for n, p in named if n.endswith("bias")]
    others = [(n, p) for n, p in named if not n.endswith("bias")]
    return optim.AdamW(
        [{"params": biases, "weight_decay": 0.0, "lr": 0.05}, {"params": others}], lr=0.01
    )


def same(name: str, **options: Any) -> tuple[Any, Callable]:
    """Our rule and torch's optimizer of the same name and options."""
    theirs = {k: v for k, v in options.items() if k not in ("beta1", "beta2")}
    if "beta2" in options:
        theirs["betas"] = (options.get("beta1", 0.9), options["beta2"])
    return getattr(ours, name)(**options), lambda named: getattr(optim, name)(named, **theirs)


TABLE: dict[str, tuple[Any, Any]] = {
    "sgd": same("SGD", lr=0.1),
    "sgd momentum": same("SGD", lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "sgd nesterov": same("SGD", lr=0.1, momentum=0.9, nesterov=True),
    "sgd maximize": same("SGD", lr=0.1, momentum=0.9, weight_decay=0.01, maximize=True),
    "adam": (Adam(), optim.Adam),
    "adam decay": same("Adam", lr=0.01, beta1=0.8, beta2=0.9, eps=1e-4, weight_decay=0.1),
    "amsgrad": same("Adam", lr=0.01, beta2=0.5, amsgrad=True, maximize=True),
    "adamw": (AdamW(), optim.AdamW),
    "adamw amsgrad": same("AdamW", lr=0.01, weight_decay=0.3, amsgrad=True),
    "nadam": (NAdam(), optim.NAdam),
    "nadam decoupled": same(
        "NAdam", weight_decay=0.1, decoupled_weight_decay=True, momentum_decay=0.1
    ),
    "radam": (RAdam(), optim.RAdam),
    "radam decay": same("RAdam", lr=0.01, weight_decay=0.1, maximize=True),
    "radam decoupled": same("RAdam", lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "adamax": (Adamax(), optim.Adamax),
    "adamax decay": same("Adamax", lr=0.01, weight_decay=0.1, beta2=0.6),
    "rmsprop": (RMSprop(), optim.RMSprop),
    "rmsprop momentum": same("RMSprop", momentum=0.9, weight_decay=0.1),
    "rmsprop centered": same("RMSprop", centered=True, alpha=0.9),
    "rmsprop centered momentum": same("RMSprop", centered=True, momentum=0.5, maximize=True),
    "adagrad": (Adagrad(), optim.Adagrad),
    "adagrad decay": same(
        "Adagrad", lr=0.1, lr_decay=0.2, weight_decay=0.1, initial_accumulator_value=0.01
    ),
    "adadelta": (Adadelta(), optim.Adadelta),
    "adadelta decay": same("Adadelta", lr=0.5, rho=0.7, weight_decay=0.1),
    "asgd": same("ASGD"),
    "asgd averaging": same(
        "ASGD", lr=0.1, lambd=0.2, alpha=0.5, t0=1.0, weight_decay=0.1, maximize=True
    ),
    "rprop": same("Rprop"),
    "rprop at its bounds": same(
        "Rprop", lr=0.3, etas=(0.4, 1.5), step_sizes=(0.2, 0.4), maximize=True
    ),
    "adafactor": same("Adafactor", d=1.1),  # at 1 a first step is on the kink of its bound
    "adafactor decay": same(
        "Adafactor", lr=0.9, beta2_decay=-0.5, eps=(1e-3, 0.5), d=1.2, weight_decay=0.1
    ),
    "lion": (Lion(lr=0.01, weight_decay=0.1), lion),
    "muon": (Muon(lr=0.02, others=SGD(lr=0.02)), muon),
    "clipped": (
        Clipped(MOMENTUM, max_norm=0.3),
        before(lambda params: clip_grad_norm_(params, 0.3)),
    ),
    "clipped by value": (
        ClippedByValue(MOMENTUM, 0.02),
        before(lambda params: clip_grad_value_(params, 0.02)),
    ),
    "clipped adaptively": (ClippedAdaptively(SGD(lr=0.1), ratio=0.02), adaptively_clipped),
    "accumulated": (Accumulated(MOMENTUM, every=3), Accumulating),
    "groups": (
        Groups({"*bias": AdamW(lr=0.05, weight_decay=0.0), re.compile(".*"): AdamW(lr=0.01)}),
        grouped,
    ),
    "lookahead": (Lookahead(SGD(lr=0.1), alpha=0.4, every=2), lookahead),
    "averaged": (Averaged(MOMENTUM, decay=0.9), None),
    "noised": (Noised(MOMENTUM, std=0.1, seed=3), None),
    "private": (private(MOMENTUM, max_norm=0.3, noise=0.5, samples=3), None),
    "averaged uniformly": (Averaged(Clipped(MOMENTUM, max_norm=0.3), decay=None, start=1), None),
    "schedule-free": (ScheduleFreeSGD(lr=0.5, weight_decay=0.1), None),
    "sam": (SAM(MOMENTUM, rho=0.3), None),
    "sam within clipping": (Clipped(SAM(Adam(), rho=0.3), max_norm=0.2), None),
    "sam of some": (Groups({"*bias": SGD(), "*": SAM(MOMENTUM, rho=0.3)}), None),
    "transformed": (Transformed(MOMENTUM, lambda grads, t: tree.scale(0.5**t, grads)), None),
    "clipped groups": (Clipped(Groups({"0.*": None, "*": MOMENTUM}), max_norm=0.2), None),
}
LONG = {
    "radam": 6,
    "radam decay": 6,
    "radam decoupled": 6,
    "accumulated": 6,
    "private": 6,
}  # steps until every term takes part


@pytest.mark.parametrize("name", TABLE)
def test_rule_is_exact_and_pure(name):
    rule, reference = TABLE[name]
    check_optimizer(rule, reference=reference, steps=LONG.get(name, 3))


@pytest.mark.parametrize("name", ["clipped", "clipped by value", "clipped adaptively"])
def test_the_clipping_rows_do_clip(name):
    wrapper = TABLE[name][0]
    for problem in problems():
        clipped, plain = problem.run(wrapper, {}), problem.run(wrapper.rule, {})
        assert any(not torch.allclose(clipped[k], plain[k], rtol=1e-3) for k in plain)


@pytest.mark.parametrize("decay", [0.9, None])
def test_average_equals_torch_averaged_model(decay):
    problem = problems(steps=5)[0]
    module = problems(steps=5)[0].module
    average = AveragedModel(
        module, multi_avg_fn=None if decay is None else get_ema_multi_avg_fn(decay)
    )
    optimizer = optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for images, labels, weights in problem.batches:
        optimizer.zero_grad()
        losses = torch.nn.functional.cross_entropy(module(images), labels, reduction="none")
        (losses * weights).mean().backward()
        optimizer.step()
        average.update_parameters(module)
    end = problem.run(Averaged(MOMENTUM, decay), {})
    for name, theirs in average.module.named_parameters():
        torch.testing.assert_close(end[name], theirs.detach(), rtol=0, atol=1e-12)


def test_average_before_its_start_is_the_last_iterate():
    problem = problems()[0]
    late, plain = problem.run(Averaged(MOMENTUM, start=3), {}), problem.run(MOMENTUM, {})
    assert all(torch.equal(late[name], plain[name]) for name in plain)


def test_muon_agrees_with_torch_up_to_its_bfloat16():
    theta, grad = torch.randn(6, 4), torch.randn(6, 4)
    theirs = torch.nn.Parameter(theta.clone())
    theirs.grad = grad
    optim.Muon([theirs], lr=0.1).step()
    rule = Muon(lr=0.1)
    mine, _ = rule.update({"w": grad}, rule.init({"w": theta}), {"w": theta})
    torch.testing.assert_close(mine["w"], theirs.detach(), rtol=0, atol=2e-3)


def test_a_hyper_parameter_may_be_switched_on_during_the_run():
    problem = problems()[0]
    rules = [RMSprop(), RMSprop(momentum=0.9), RMSprop(momentum=0.9)]
    end = simulate(problem.model.loss, problem.model.params, problem.batches, rules)
    always = problem.run(
        RMSprop(momentum=0.9), {}
    )  # the first step does not depend on the momentum
    assert all(torch.equal(end[name], always[name]) for name in end)


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda: Muon().init({"b": torch.zeros(3)}), "Groups"),
        (lambda: Muon(adjust_lr_fn="none"), "match_rms_adamw"),
        (lambda: Accumulated(SGD(), every=0), "1 or more"),
        (lambda: Lookahead(SGD(), every=0), "1 or more"),
        (
            lambda: Groups({"a*": SGD()}).init({"a": torch.zeros(1), "b": torch.zeros(1)}),
            "no pattern matches 'b'",
        ),
        (lambda: Groups({"a*": SGD(), "ab": SGD()}).init({"ab": torch.zeros(1)}), "pattern 'ab'"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(act, message):
    with pytest.raises(SimudyError, match=message):
        act()


@pytest.mark.parametrize(
    "rule, spans",
    [
        (SGD(momentum=0.9, nesterov=True), True),
        (Averaged(Accumulated(Clipped(SGD()))), True),
        (Groups({"a": SGD(), "b": None}), True),
        (Groups({"a": SGD(), "b": Adam()}), False),
        (Clipped(Adam()), False),
        (private(SGD(), noise=0.0, samples=2), True),
        (private(SGD(), noise=0.1, samples=2), False),
        (ClippedByValue(SGD()), False),
        (ClippedAdaptively(SGD()), False),
        (Averaged(Lion()), False),
        (Lookahead(SAM(ASGD())), True),
        (Transformed(ScheduleFreeSGD(), lambda grads, _: grads), False),
    ],
)
def test_wrappers_tell_whether_the_gradients_are_spanned(rule, spans):
    assert rule.spans_gradients is spans


# A rule of one's own: one dataclass.


@dataclass
class SignSGD(PerTensor):
    lr: float | Tensor = 0.01
    momentum: float | Tensor = 0.5

    def step(self, grad, state, param):
        buffer = grad if state is None else self.momentum * state + grad
        return param - self.lr * buffer.sign(), buffer


def sign_sgd(named):
    def move(state, p, g):
        state["b"] = 0.5 * state.get("b", 0.0) + g
        return p - 0.01 * state["b"].sign()

    return ByHand(named, move)


def test_a_rule_of_ones_own():
    check_optimizer(SignSGD(), reference=sign_sgd)  # pyright: ignore[reportArgumentType]
    check_optimizer(Clipped(SignSGD()))


# ``check_optimizer`` must notice what is wrong.


class Detached(SGD):
    def step(self, grad, state, param):
        return super().step(grad.detach(), state, param)


class Remembering(SGD):
    calls = 0

    def step(self, grad, state, param):
        self.calls += 1
        return param - self.lr / self.calls * grad, None


class InPlace(SGD):
    def step(self, grad, state, param):
        with torch.no_grad():
            param.data.sub_(0.1 * grad)
        return param, None


class PlainRoot(SGD):
    spans_gradients = False

    def step(self, grad, state, param):
        return param - self.lr * grad / ((grad * grad).sqrt() + 1e-3), None


class Branching(SGD):
    def step(self, grad, state, param):
        return (param - self.lr * grad, None) if grad.sum() < 1e9 else (param, None)


class Boastful(Adam):
    spans_gradients = True


@pytest.mark.parametrize(
    "rule, options, error, message",
    [
        (
            SGD(lr=0.1),
            {"reference": lambda named: optim.SGD(named, lr=0.11)},
            AssertionError,
            "off SGD",
        ),
        (Detached(), {}, AssertionError, "finite differences"),
        (Remembering(), {}, AssertionError, "finite differences|hidden state"),
        (InPlace(), {}, AssertionError, "finite differences|out of place"),
        (PlainRoot(), {}, AssertionError, "not finite"),
        (Branching(), {}, RuntimeError, "vmap"),
        (Boastful(), {}, AssertionError, "spans_gradients"),
    ],
)
def test_the_check_finds(rule, options, error, message):
    with pytest.raises(error, match=message):
        check_optimizer(rule, **options)


def test_zero_gradients_move_nothing_but_by_decay():
    params = {"w": torch.ones(3, 2)}
    for rule in (
        Adam(),
        NAdam(),
        RAdam(),
        Adamax(),
        RMSprop(),
        RMSprop(centered=True),
        Adagrad(),
        Adadelta(),
        Adafactor(),
        Rprop(),
        ScheduleFreeSGD(),
        Lion(),
    ):
        end, _ = rule.update(tree.map(torch.zeros_like, params), rule.init(params), params)
        assert torch.equal(end["w"], params["w"]), rule


# The rest of the package.


def test_docstrings_tell_the_truth():
    modules = [
        importlib.import_module(f"{ours.__name__}.{m.name}")
        for m in pkgutil.iter_modules(ours.__path__)
    ]
    results = [doctest.testmod(module) for module in modules]
    assert sum(r.failed for r in results) == 0
    assert sum(r.attempted for r in results) > 40


def test_importing_the_rules_imports_no_peer():
    code = (
        f"import {ours.__name__}, sys; sys.exit(bool({{'torchopt', 'higher'}} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


CONF = Path(__file__).parents[2] / "conf" / "inner"


def test_every_rule_has_a_configuration():
    rules = {
        n.lower()
        for n in ours.__all__
        if isinstance(r := getattr(ours, n), type) and issubclass(r, PerTensor)
    }
    assert {path.stem for path in CONF.glob("*.yaml")} == rules - {"pertensor"}


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_configuration_names_the_fields_of_its_rule(path):
    text = path.read_text()
    given = yaml.safe_load(text)
    rule = getattr(ours, given.pop("_target_").removeprefix("simudy.dynamics.optim."))
    assert text.startswith("# ") and rule.__name__.lower() == path.stem
    assert set(given) - {"betas"} == {f.name for f in fields(rule)}
    given.pop("betas", None)  # beta1 and beta2 in one
    given.pop("others", None)  # Muon's second rule
    assert set(given.values()) == {None}
