"""Every experiment and sweep file composes, and every experiment takes one outer step in a small
size.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import CIFAR
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from PIL import Image

from simudy.app.settings.schema import register, resolve

register()
CONF = Path(__file__).parents[2] / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))
SMALL = {
    "MLP": ["model.width=16"],
    "CNN": ["model.width=4"],
    "ResNet": ["model.width=2"],
    "Writer": ["model.width=4"],
    "ViT": ["model.width=8", "model.depth=1", "model.heads=2"],
}


def composed(*overrides: str):
    with initialize_config_module("simudy.conf", version_base="1.3"):
        return compose("config", list(overrides))


def pictures(root: Path) -> list[str]:
    """A folder in TinyImageNet's layout."""
    for i, name in enumerate(["n01443537", "n01629819"] * 4):
        (folder := root / "train" / name / "images").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}_{i}.JPEG")
    return [f"data.root={root / 'train'}", "data.size=8", "data.pretrain=0"]


def archive(root: Path) -> list[str]:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(root / "images.npz", images=images, labels=np.arange(40) % 10)
    return [f"data.path={root / 'images.npz'}", "data.pretrain=0"]


def records(root: Path) -> list[str]:
    if not (CIFAR / "cifar-10-batches-bin").is_dir():
        pytest.skip("CIFAR-10 is not here")
    return [f"data.root={CIFAR}", "data.size=8"]


def sentences(root: Path) -> list[str]:
    return ["data.n=8"]  # as many as the file has labels


DATA = {"Sentences": sentences, "Folder": pictures, "Npz": archive, "Cifar10": records}


def test_the_papers_tables_are_there():
    others = {
        "cifar10_resnet18_n20",  # and data.n=50, 60, 80, 100, 120
        "cifar10_mlp_n20",
        "cifar10_mlp_n100",
        "cifar10_binary_mlp_n20",
        "cifar10_resnet50_n20",
    }
    assert others | {"svhn_resnet18_n20", "cifar10_vit_n10", "cifar10_linearity"} <= {*EXPERIMENTS}
    assert {
        "early_loss",
        "distance",
        "tv",
        "clip",
        "noise",
        "epochs",
        "labels",
        "order",
        "methods",
    } <= {*SWEEPS}


def test_the_pages_of_results_name_them_all_and_no_others():
    pages = sorted((CONF.parent / "docs" / "results").glob("*.md"))
    page = "\n".join(page.read_text() for page in pages)
    named = {kind: set(re.findall(rf"{kind}=(\w+)", page)) for kind in ("experiment", "sweep")}
    assert named == {"experiment": {*EXPERIMENTS}, "sweep": {*SWEEPS}}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_dry_runs(name, cli, tmp_path):
    cfg = composed(f"experiment={name}")
    assert cfg.name == name
    data, small = (node._target_.rpartition(".")[2] for node in (cfg.data, cfg.model))
    options = [
        *SMALL[small],
        *DATA[data](tmp_path),
        *([] if cfg.attack.n is None else ["attack.n=6"]),
    ]
    outcome = cli(f"experiment={name}", "debug=tiny", "dry_run=true", *options, tiny=False)
    assert outcome.code == 0, outcome.err
    simulates = cfg.attack._target_.endswith((".Simudy", ".Corrected"))
    assert ("steps simulated" in outcome.out) == simulates and "one outer step" in outcome.out


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_sets_what_there_is(name):
    params = OmegaConf.load(CONF / "sweep" / f"{name}.yaml").hydra.sweeper.params
    resolve(
        composed(
            f"sweep={name}",
            *(f"{key}={str(values).split(',')[-1]}" for key, values in params.items()),
        )
    )


def test_a_sweep_file_runs(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "simudy.app.tasks.finish._draw", lambda *args: None
    )  # slow, and not the point
    outcome = cli("sweep=order", "recipe.batch_size=2", "recipe.shuffle=true", "hydra.sweep.dir=s")
    assert outcome.code == 0, outcome.err
    assert len(list(tmp_path.glob("s/*/result.json"))) == 2
