"""What goes around a rule, or asks for more than one gradient: SAM, schedule-free, groups by a
function, a function between gradient and rule. Each against a loop in plain torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simudy import SGD, Adam, Factored, Mixed, Recompute, StatelessModel, simulate
from simudy.attack.serial import to_plain
from simudy.dynamics import tree
from simudy.dynamics.optim import (
    ASGD,
    SAM,
    Accumulated,
    Groups,
    Lookahead,
    ScheduleFreeSGD,
    Transformed,
    hyperparameters,
    scheduled,
    warmup,
)
from simudy.errors import SimudyError
from simudy.testing import problems

RATES = warmup(0.5, 3)


def gradient(module: torch.nn.Module, batch: tuple[Tensor, ...]) -> list[Tensor]:
    images, labels, weights = batch
    losses = F.cross_entropy(module(images), labels, reduction="none")
    return list(torch.autograd.grad((losses * weights).mean(), list(module.parameters())))


def compare(end: dict[str, Tensor], module: torch.nn.Module, *, atol: float = 1e-12) -> None:
    for name, theirs in module.named_parameters():
        torch.testing.assert_close(end[name], theirs.detach(), rtol=0, atol=atol)


def test_sam_takes_its_gradient_uphill():
    """Algorithm 1 of arXiv:2010.01412, written out, around momentum."""
    for problem in problems(steps=5):
        module, buffers = problem.module, None
        end = problem.run(SAM(SGD(lr=0.1, momentum=0.9), rho=0.3), {})
        for batch in problem.batches:
            params, first = list(module.parameters()), gradient(module, batch)
            length = torch.stack([g.norm() for g in first]).norm()
            with torch.no_grad():
                for p, g in zip(params, first, strict=True):
                    p += 0.3 * g / length
            second = gradient(module, batch)
            buffers = (
                second
                if buffers is None
                else [0.9 * b + g for b, g in zip(buffers, second, strict=True)]
            )
            with torch.no_grad():
                for p, g, b in zip(params, first, buffers, strict=True):
                    p -= 0.3 * g / length + 0.1 * b
        compare(end, module)


def test_sam_of_micro_batches_and_of_nothing():
    problem = problems(steps=4)[0]
    uphill = problem.run(Accumulated(SAM(SGD(lr=0.1), rho=0.0), every=2), {})
    plain = problem.run(Accumulated(SGD(lr=0.1), every=2), {})
    assert all(torch.allclose(uphill[k], plain[k], rtol=0, atol=1e-15) for k in plain)
    with pytest.raises(SimudyError, match=r"SAM\(Transformed"):
        problem.run(Transformed(SAM(SGD()), lambda grads, _: grads), {})


def schedule_free(module: torch.nn.Module, batches: list) -> list[Tensor]:
    """Equations 1 to 3 of arXiv:2405.15682, with β = 0.9, and λ = 0.1 at y."""
    params = list(module.parameters())
    z, x = ([p.detach().clone() for p in params] for _ in range(2))
    total = 0.0
    for t, batch in enumerate(batches):
        with torch.no_grad():
            for p, a, b in zip(params, z, x, strict=True):
                p.copy_(0.1 * a + 0.9 * b)
        total += RATES(t) ** 2
        c = RATES(t) ** 2 / total
        for i, g in enumerate(gradient(module, batch)):
            z[i] = z[i] - RATES(t) * (g + 0.1 * params[i].detach())
            x[i] = (1 - c) * x[i] + c * z[i]
    return x


def test_schedule_free_is_the_papers():
    for problem in problems(steps=6):
        rules = scheduled(ScheduleFreeSGD(weight_decay=0.1), 6, lr=RATES)
        end = simulate(problem.model.loss, problem.model.params, problem.batches, rules)
        theirs = schedule_free(problem.module, problem.batches)
        for mine, x in zip(end.values(), theirs, strict=True):
            torch.testing.assert_close(mine, x, rtol=0, atol=1e-12)


OPTAX = """
import jax, json, optax

jax.config.update("jax_enable_x64", True)
target = jax.numpy.linspace(-1, 1, 6)
start = {"w": jax.numpy.zeros(6)}


def slope(params):
    return {"w": 4 * (params["w"] - target) ** 3}


free = optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9)
params, state = start, free.init(start)
for _ in range(8):
    updates, state = free.update(slope(params), state, params)
    params = optax.apply_updates(params, updates)
averaged = optax.contrib.schedule_free_eval_params(state, params)

ahead = optax.lookahead(optax.sgd(0.1), sync_period=3, slow_step_size=0.4)
pair = optax.LookaheadParams.init_synced(start)
state = ahead.init(pair)
for _ in range(7):
    updates, state = ahead.update(slope(pair.fast), state, pair)
    pair = optax.apply_updates(pair, updates)
print(json.dumps([averaged["w"].tolist(), pair.fast["w"].tolist()]))
"""


@pytest.mark.skipif(not find_spec("optax"), reason="optax is not installed")
def test_schedule_free_and_lookahead_are_optaxs():
    """On a quartic, whose gradient both sides know; optax in a process of its own, as jax closes
    streams and warns at forks for as long as a process lives.
    """
    printed = subprocess.run([sys.executable, "-c", OPTAX], check=True, capture_output=True).stdout
    free, ahead = torch.tensor(json.loads(printed), dtype=torch.float64)
    target = torch.linspace(-1, 1, 6, dtype=torch.float64)
    loss = lambda params, _: (params["w"] - target).pow(4).sum()  # noqa: E731
    theta = {"w": torch.zeros(6, dtype=torch.float64)}
    for theirs, steps, rule in [
        (free, 8, ScheduleFreeSGD(lr=0.1)),
        (ahead, 7, Lookahead(SGD(lr=0.1), alpha=0.4, every=3)),
    ]:
        mine = simulate(loss, theta, [None] * steps, rule)["w"]
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "rule",
    [
        ASGD(lr=0.1, lambd=0.1, t0=0.0),
        ScheduleFreeSGD(lr=0.5, weight_decay=0.1),
        SAM(SGD(lr=0.1, momentum=0.9), rho=0.3),
        Lookahead(SGD(lr=0.1, momentum=0.9), every=2),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_rules_that_span_their_gradients_run_factored(rule):
    problem = problems(steps=4)[0]
    images = [x.clone().requires_grad_() for x in problem.inputs()["images"]]
    found = []
    for gradient_mode in (Factored(layers="all"), Factored(inner=Mixed(), layers="all"), Mixed()):
        mode = Recompute(every=2), gradient_mode
        outcome = problem.outcome(rule, {"images": images}, mode)
        found.append((outcome, *torch.autograd.grad(outcome, images)))
    for other in found[:2]:
        for a, b in zip(other, found[2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_groups_by_a_function_of_name_and_parameter():
    problem = problems(steps=4)[1]
    by_name = Groups({"*bias": SGD(lr=0.1), "1.weight": SGD(lr=0.1), "*": Adam()})
    by_shape = Groups({lambda _, p: p.ndim < 2: SGD(lr=0.1), lambda *_: True: Adam()})
    expected, found = problem.run(by_name, {}), problem.run(by_shape, {})
    assert all(torch.equal(found[name], p) for name, p in expected.items())
    assert len(hyperparameters(by_shape)) == 4 + 5  # two functions of one name stay two
    with pytest.raises(SimudyError, match="glob or a regular expression"):
        to_plain(by_shape)
    with pytest.raises(SimudyError, match="no parameter is left for the pattern '<lambda>'"):
        Groups({lambda *_: False: None, "*": SGD()}).init(problem.model.params)


@dataclass
class Fading:
    """Half the gradient, then a quarter, and so on; of weights alone."""

    by: float | Tensor = 0.5

    def __call__(self, grads: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return {k: g * self.by ** (step + 1) for k, g in grads.items() if k.endswith("weight")}


def test_a_function_between_gradient_and_rule():
    problem = problems(steps=4)[0]
    end = problem.run(Transformed(SGD(lr=0.1), Fading()), {})
    for t, batch in enumerate(problem.batches):
        grads = gradient(problem.module, batch)
        with torch.no_grad():
            for (name, p), g in zip(problem.module.named_parameters(), grads, strict=True):
                p -= 0.1 * 0.5 ** (t + 1) * g * name.endswith("weight")
    compare(end, problem.module)


def test_fields_of_such_a_function_are_learned_and_its_closure_is_refused_under_replay():
    problem = problems(steps=4)[0]
    by = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    adjoints = [Recompute(every=2), Recompute(every=4)]
    slopes = [
        torch.autograd.grad(
            tree.norm(
                simulate(
                    problem.model.loss,
                    problem.model.params,
                    problem.batches,
                    Transformed(SGD(lr=0.1), Fading(by)),
                    adjoint=adjoint,
                )
            ),
            by,
        )[0]
        for adjoint in adjoints
    ]

    def outcome(value: float) -> Tensor:
        return tree.norm(problem.run(Transformed(SGD(lr=0.1), Fading(value)), {}))

    expected = (outcome(0.5 + 1e-5) - outcome(0.5 - 1e-5)) / 2e-5
    for slope in slopes:
        torch.testing.assert_close(slope, expected.detach(), rtol=1e-7, atol=0)
    hidden = Transformed(SGD(lr=0.1), lambda grads, _: tree.scale(by, grads))
    with pytest.raises(SimudyError, match="its gradient would be lost"):
        simulate(
            problem.model.loss,
            problem.model.params,
            problem.batches,
            hidden,
            adjoint=Recompute(every=2),
        )


def test_sam_asks_for_two_gradients_a_step_on_the_same_batch():
    model = StatelessModel(torch.nn.Linear(3, 2).double())
    batch = (torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1]))
    asked: list[Tensor] = []

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        asked.append(params["weight"].detach())
        return model.loss(params, batch)

    simulate(loss, model.params, [batch], SAM(SGD(), rho=0.5))
    here, there = asked[-2:]
    assert not torch.allclose(here, there) and asked[-2].equal(asked[0])
