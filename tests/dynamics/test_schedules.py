"""One rule per step: the schedules of torch, arbitrary ones, and learned ones."""

import pytest
import torch
from torch.optim import lr_scheduler as lrs

from simudy.dynamics import tree
from simudy.dynamics.adjoint import Direct, Recompute
from simudy.dynamics.gradient import Mixed, Reverse
from simudy.dynamics.optim import (
    SGD,
    Accumulated,
    Adam,
    Clipped,
    Groups,
    cosine_decay,
    hyperparameters,
    one_cycle,
    scaled,
    scheduled,
    step_decay,
    warmup,
    with_hyperparameters,
)
from simudy.dynamics.simulate import simulate
from simudy.errors import SimudyError
from simudy.testing import directional, problems

STEPS, LR = 12, 0.3


def _torch_rates(make, steps: int = STEPS) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler, rates = make(optimizer), []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < steps:
            scheduler.step()
    return rates


def _warm_then_cosine(o):
    warm, cosine = (
        lrs.LinearLR(o, start_factor=0.25, total_iters=4),
        lrs.CosineAnnealingLR(o, T_max=8, eta_min=0.01),
    )
    return lrs.SequentialLR(o, [warm, cosine], milestones=[4])


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (step_decay(LR, every=3, factor=0.5), lambda o: lrs.StepLR(o, step_size=3, gamma=0.5)),
        (cosine_decay(LR, STEPS), lambda o: lrs.CosineAnnealingLR(o, T_max=STEPS)),
        (warmup(LR, 5, start=1 / 3), lambda o: lrs.LinearLR(o, total_iters=5)),
        (warmup(cosine_decay(LR, 8, end=0.01), 4, start=0.25), _warm_then_cosine),
        (one_cycle(LR, STEPS), lambda o: lrs.OneCycleLR(o, max_lr=LR, total_steps=STEPS)),
        (
            one_cycle(LR, STEPS, rise=0.4, start=0.1, end=0.01),
            lambda o: lrs.OneCycleLR(
                o, LR, STEPS, pct_start=0.4, div_factor=10, final_div_factor=100
            ),
        ),
        (lambda t: LR * 0.9**t, lambda o: lrs.ExponentialLR(o, gamma=0.9)),
    ],
    ids=[
        "step",
        "cosine",
        "warm-up",
        "warm-up then cosine",
        "one cycle",
        "one cycle tuned",
        "callable",
    ],
)
def test_schedule_equals_torch(ours, theirs):
    rates = [rule.lr for rule in scheduled(SGD(), STEPS, lr=ours)]
    assert rates == pytest.approx(_torch_rates(theirs), rel=1e-12)


def test_cosine_stays_at_its_end():
    assert cosine_decay(1.0, 4, end=0.1)(9) == pytest.approx(0.1)


def test_warm_up_loses_no_step():
    assert [warmup(1.0, 4)(t) for t in range(5)] == pytest.approx(
        [0.25, 0.4375, 0.625, 0.8125, 1.0]
    )


def test_scheduled_training_equals_a_torch_loop():
    problem = problems(steps=6)[0]
    module = problems(steps=6)[0].module
    optimizer = torch.optim.Adam(module.parameters(), lr=LR)
    scheduler = lrs.CosineAnnealingLR(optimizer, T_max=6)
    for images, labels, weights in problem.batches:
        optimizer.zero_grad()
        losses = torch.nn.functional.cross_entropy(module(images), labels, reduction="none")
        (losses * weights).mean().backward()
        optimizer.step()
        scheduler.step()
    rules = scheduled(Adam(), 6, lr=cosine_decay(LR, 6))
    end = simulate(problem.model.loss, problem.model.params, problem.batches, rules)
    for name, theirs in module.named_parameters():
        torch.testing.assert_close(end[name], theirs.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("adjoint", [Direct(), Recompute(every=2)])
@pytest.mark.parametrize("gradient", [Reverse(), Mixed()])
def test_a_learned_curve_gets_the_gradient_of_each_step(adjoint, gradient):
    problem = problems(steps=3)[0]

    def outcome(lr):
        rules = scheduled(Clipped(SGD(momentum=0.9), max_norm=0.5), 3, lr=lr)
        end = simulate(
            problem.model.loss,
            problem.model.params,
            problem.batches,
            rules,
            adjoint=adjoint,
            gradient=gradient,
        )
        return tree.dot(problem.view, end)

    lr = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(outcome(lr), lr)
    for t, axis in enumerate(torch.eye(3, dtype=torch.float64)):
        expected = directional(lambda at: outcome(at[0]), [lr], along=[axis], step=1e-4)
        assert found[t].item() == pytest.approx(expected, rel=1e-7)


def test_the_parameters_of_a_curve_are_learned():
    problem = problems(steps=3)[0]

    def outcome(peak):
        rules = scheduled(SGD(), 3, lr=warmup(cosine_decay(peak, 2), 1), momentum=[0.0, 0.5, 0.9])
        end = simulate(
            problem.model.loss, problem.model.params, problem.batches, rules, adjoint=Recompute()
        )
        return tree.dot(problem.view, end)

    peak = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(outcome(peak), peak)
    expected = directional(
        lambda at: outcome(at[0]), [peak], along=[torch.ones_like(peak)], step=1e-4
    )
    assert found.item() == pytest.approx(expected, rel=1e-7) and expected != 0


def test_names_reach_through_wrappers_to_the_outermost_holders():
    rule = Clipped(Groups({"*.bias": Accumulated(SGD(lr=0.1)), "*": Adam(lr=0.2)}), max_norm=1.0)
    (after,) = scheduled(rule, 1, lr=0.5, max_norm=lambda t: 2.0)
    assert {k: v for k, v in hyperparameters(after).items() if k.endswith(("/lr", "max_norm"))} == {
        "rule/rules/*.bias/rule/lr": 0.5,
        "rule/rules/*/lr": 0.5,
        "max_norm": 2.0,
    }
    (after,) = scaled(rule, 1, lr=[0.5])
    assert [v for k, v in hyperparameters(after).items() if k.endswith("/lr")] == [0.05, 0.1]


def test_a_field_shared_by_nested_rules_is_set_outside_only():
    nested = Clipped(Clipped(SGD(), max_norm=1.0), max_norm=3.0)
    (after,) = scheduled(nested, 1, max_norm=2.0)
    assert (after.max_norm, after.rule.max_norm) == (2.0, 1.0)


def test_counts_are_no_numbers():
    rule = Accumulated(SGD(lr=1), every=3)  # an int given for a float is a number, a count is not
    assert hyperparameters(rule)["rule/lr"] == 1.0 and "every" not in hyperparameters(rule)
    assert with_hyperparameters(rule, {"rule/lr": 2.0}) == Accumulated(SGD(lr=2.0), every=3)


@pytest.mark.parametrize(
    "schedules, message",
    [
        ({"lr": [0.1, 0.2]}, "2 values for 3 steps"),
        ({"lr": torch.ones(4)}, "4 values"),
        ({"rate": 0.1}, "this rule has"),
    ],
)
def test_bad_schedules_are_refused(schedules, message):
    with pytest.raises(SimudyError, match=message):
        scheduled(SGD(), 3, **schedules)
