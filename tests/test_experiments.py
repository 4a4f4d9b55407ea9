"""Every experiment file composes, and takes one outer step in a small size."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import CIFAR
from hydra import compose, initialize_config_module

from simudy.app.config import register

register()
FOLDER = Path(__file__).parents[1] / "conf" / "experiment"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SMALL = {
    "MLP": ["model.width=16"],
    "CNN": ["model.width=4"],
    "ResNet": ["model.width=2", "data.size=8"],
    "ViT": ["model.width=8", "model.depth=1", "data.size=8"],
}


def composed(name: str):
    with initialize_config_module("simudy.conf", version_base="1.3"):
        return compose("config", [f"experiment={name}"])


def test_there_are_experiments():
    assert {"cifar10_mlp_n20", "cifar10_mlp_n100", "cifar10_resnet18_n20", "cifar10_resnet18_n50"} <= {*EXPERIMENTS}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_dry_runs(name, cli):
    cfg = composed(name)
    assert cfg.name == name
    options = [f"data.root={CIFAR}"] if "root" in list(cfg.data) else []
    if options and not (CIFAR / "cifar-10-batches-bin").is_dir():
        pytest.skip("CIFAR-10 is not here")
    small = SMALL[cfg.model._target_.rpartition(".")[2]]
    outcome = cli(f"experiment={name}", "debug=tiny", "dry_run=true", *small, *options, tiny=False)
    assert outcome.code == 0, outcome.err
    assert "steps simulated" in outcome.out and "one outer step" in outcome.out
