"""The configuration: what is refused, and what makes two runs the same."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from simudy.app.settings.factories import outer
from simudy.app.settings.fingerprint import config_hash
from simudy.app.settings.schema import register, resolve
from simudy.errors import SimudyError

register()


def config(*overrides: str):
    with initialize_config_module("simudy.conf", version_base="1.3"):
        return compose("config", list(overrides))


@pytest.mark.parametrize(
    "override", ["task=victim", "intervals.log=1", "cache=elsewhere", "name=other", "dry_run=true"]
)
def test_what_does_not_change_a_result_does_not_change_the_hash(override):
    assert config_hash(config(override)) == config_hash(config())


@pytest.mark.parametrize(
    "override", ["seed=1", "outer.iterations=7", "inner=adam", "data.n=10", "+task=linearity"]
)
def test_what_does_changes_it(override):
    assert config_hash(config(override.lstrip("+"))) != config_hash(config())


def test_the_hash_survives_the_disk(tmp_path):
    cfg = config("outer.lr=1e-3", "evidence.mean=[0.5]")
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    assert config_hash(OmegaConf.load(tmp_path / "config.yaml")) == config_hash(cfg)  # type: ignore[arg-type]


def test_a_replaced_target_starts_empty():
    overrides = ["model._target_=my.Net", "+model.foo=3", "model.width=5"]
    assert resolve(config(*overrides), overrides).model == {
        "_target_": "my.Net",
        "foo": 3,
        "width": 5,
    }


def test_a_replaced_attack_keeps_the_guesses():
    overrides = ["attack._target_=my.Attack", "attack.inner.lr=0.5"]
    attack = resolve(config(*overrides), overrides).attack
    assert set(attack) == {"_target_", "inner", "recipe", "n"} and attack.inner.lr == 0.5


def test_data_is_not_asked_for_where_there_is_evidence():
    with pytest.raises(SimudyError, match=r"data\.root is not set"):
        resolve(config("data=cifar10"))
    resolve(config("data=cifar10", "evidence.folder=x"))


@pytest.mark.parametrize(
    "override", ["backend=jax", "victim.mode=test", "dummy.images=span2", "recipe.epochs=0"]
)
def test_values_out_of_range(override):
    with pytest.raises(SimudyError, match=override.split("=")[0]):
        resolve(config(override))


def test_another_outer_optimizer_or_schedule_needs_its_target_only():
    overrides = [
        "outer.optimizer._target_=torch.optim.RMSprop",
        "outer.schedule._target_=torch.optim.lr_scheduler.ConstantLR",
        "+outer.schedule.factor=0.5",
    ]
    made, leaf = outer(resolve(config(*overrides), overrides)), torch.zeros(2, requires_grad=True)
    optimizer = made.optimizer([leaf], lr=0.2)
    assert isinstance(optimizer, torch.optim.RMSprop) and made.schedule is not None
    assert made.schedule(optimizer).get_last_lr() == [0.1]
