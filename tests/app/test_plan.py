"""What does not fit in memory is differentiated in a leaner way, and the result stays the same."""

from __future__ import annotations

import logging

import pytest
import torch
from conftest import train_victim

from simudy import (
    SGD,
    Direct,
    Evidence,
    Factored,
    Mixed,
    Recipe,
    Recompute,
    Reverse,
    StatelessModel,
)
from simudy.app.tasks.plan import estimated_mb, fit_to_memory
from simudy.attack.methods.simudy import Simudy
from simudy.attack.methods.surrogate import Surrogate
from simudy.dynamics import tree
from simudy.victim.models import MLP, ResNet

CPU, STEPS = torch.device("cpu"), 16


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    torch.manual_seed(0)
    module = ResNet((3, 16, 16), 4, width=4).eval()
    recipe = Recipe(SGD(lr=0.01), epochs=STEPS)
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    return train_victim(module, recipe, images, labels, classes=4)


def chosen(evidence: Evidence, mb: float, method: Simudy | None = None) -> Simudy:
    method = method or Simudy(images="pixels", recipe=evidence.recipe, gradient=Reverse())
    return fit_to_memory(method, evidence, n=4, device=CPU, limit=mb / 1024)  # type: ignore[return-value]


def test_the_leanest_that_is_needed_is_chosen(evidence, caplog):
    caplog.set_level(logging.INFO)
    direct, mixed, lean = (
        estimated_mb(Simudy(images="pixels", adjoint=a, gradient=g), evidence, n=4)
        for a, g in ((Direct(), Reverse()), (Direct(), Mixed()), (Recompute(4), Mixed()))
    )
    assert direct > mixed > lean
    untouched = Simudy(images="pixels", recipe=evidence.recipe, gradient=Reverse())
    assert chosen(evidence, direct + 1, untouched) is untouched and not caplog.text
    assert (chosen(evidence, mixed + 0.1).adjoint, chosen(evidence, mixed + 0.1).gradient) == (
        Direct(),
        Mixed(),
    )
    assert "gradient Mixed(), for" in caplog.text
    assert chosen(evidence, lean + 0.1).adjoint == Recompute(4)
    assert "may not fit" not in caplog.text
    assert (
        chosen(evidence, lean / 2).adjoint == Recompute(4)
        and "even that may not fit" in caplog.text
    )
    assert chosen(
        evidence, mixed + 0.1, Simudy(images="pixels", gradient=Factored())
    ).gradient == Factored(Mixed())


def test_a_method_that_simulates_nothing_has_no_adjoint_to_change(evidence):
    assert fit_to_memory(Surrogate(), evidence, n=4, device=CPU, limit=1e-6).gradient == Mixed()  # type: ignore[attr-defined]


def test_the_machine_is_large_enough_for_this(evidence):
    method = Simudy(images="pixels", gradient=Reverse())
    assert fit_to_memory(method, evidence, n=4, device=CPU) is method


def test_the_objective_is_the_same(evidence):
    seed = {"seed": 0}
    first, lean = (
        m.problem(evidence, **seed) for m in (Simudy(images="pixels"), chosen(evidence, 0.1))
    )
    a, b = (
        torch.autograd.grad(p.objective(0.0)[0], p.variables()["latent"])[0] for p in (first, lean)
    )
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))


def test_a_factored_network_is_counted_by_its_factors():
    torch.manual_seed(0)
    model = StatelessModel(MLP((3, 16, 16), 4, width=500))
    final = tree.map(lambda p: p + 0.01, model.params)
    evidence = Evidence(model, model.params, final, Recipe(epochs=50), (3, 16, 16), 4, 4)
    dense, factored = (
        estimated_mb(Simudy(images="pixels", gradient=g), evidence, n=4)
        for g in (Reverse(), Factored())
    )
    assert factored < dense / 4


def test_an_attack_may_be_truncated_but_not_first_order(cli):
    assert cli("adjoint=truncated", "adjoint.last=2").code == 0
    assert "by the batches" in cli("gradient._target_=simudy.FirstOrder").error


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["gradient._target_=simudy.Factored", "+gradient.layers=all"], "set gradient=reverse"),
        (["adjoint=truncated", "adjoint.last=2"], "set adjoint=direct or adjoint=recompute"),
        (["inner._target_=simudy.dynamics.optim.SAM", "+inner.rule._target_=simudy.SGD",
          "+inner.rule.lr=0.1"], "set attack=simudy"),
    ],
)  # fmt: skip
def test_an_anchored_path_names_the_setting_that_fits_it(cli, words, remedy):
    assert remedy in cli("attack=anchored", "dummy.images=pixels", *words).error
