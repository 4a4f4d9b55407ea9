"""Models and datasets of torchvision and timm, by their ``_target_``: as they are, and exactly."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import result
from torch import nn

from simudy import SGD, StatelessModel, simulate

DATASET = (
    "{_target_: torchvision.datasets.FakeData, size: 30, image_size: [3,16,16], num_classes: 3}"
)
DATA = (
    "data=torch",
    f"data.dataset={DATASET}",
    "data.n=3",
    "recipe.epochs=2",
    "outer.iterations=2",
)


def package(name: str) -> Any:
    """A package that is here; builds for another torch raise more than ImportError."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} does not load: {error}")


MODELS: dict[str, tuple[str, Callable[[], nn.Module], tuple[str, ...]]] = {
    "torchvision": (
        "torchvision.models.mobilenet_v3_small",
        lambda: package("torchvision").models.mobilenet_v3_small(num_classes=3),
        (),
    ),
    "timm, a convolutional net": (
        "timm.create_model",
        lambda: package("timm").create_model("test_resnet", num_classes=3),
        ("+model.model_name=test_resnet",),
    ),
    "timm, a transformer": (
        "timm.create_model",
        lambda: package("timm").create_model("test_vit", num_classes=3, img_size=16),
        ("+model.model_name=test_vit", "+model.img_size=16"),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_by_its_target(cli, tmp_path, name):
    package("torchvision")
    target, make, keys = MODELS[name]
    kind = type(make()).__name__
    model = (f"model._target_={target}", "+model.num_classes=3", *keys)
    outcome = cli(*DATA, *model, "hydra.run.dir=a", tiny=False)
    assert outcome.code == 0, outcome.err
    assert f"{kind} with" in outcome.out and "3 images of 3×16×16" in outcome.out
    assert result(tmp_path / "a")["status"] == "finished"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("float64")
def test_its_training_is_the_plain_loop(name):
    module = MODELS[name][1]().double().eval()
    images, labels = torch.rand(3, 3, 16, 16), torch.arange(3)
    model = StatelessModel(module)
    simulated = simulate(
        model.loss, model.params, [(images, labels)] * 2, SGD(lr=0.05, momentum=0.9)
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
    for key, value in module.named_parameters():
        torch.testing.assert_close(simulated[key], value, rtol=1e-9, atol=1e-11)
