"""An audit on the command line: what the files prove is told, followed, and not contradicted."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import result
from torch import nn

OWN = """
import torch
from torch import nn

class Norms(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 2)
        )

class Deep(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 2))
"""
FILES = ("evidence.initial=a.pt", "evidence.final=b.pt", "evidence.shape=[1,8,8]")
AUDIT = (*FILES, "evidence.classes=2", "evidence.n=4", "recipe.epochs=6", "outer.iterations=3")


@pytest.fixture
def audit(cli, tmp_path):
    """``audit("Norms", before, after, …)``: these two files on disk, attacked."""
    (tmp_path / "nets_of_test_audit.py").write_text(OWN)

    def call(name, before, after, *argv, folder="run"):
        torch.save(before, tmp_path / "a.pt")
        torch.save(after, tmp_path / "b.pt")
        model = f"model._target_=nets_of_test_audit.{name}"
        return cli(*AUDIT, model, f"hydra.run.dir={folder}", *argv, tiny=False)

    return call


def norms():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 2)
    )


def deep():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 2))


def run(module, *, loss=nn.functional.cross_entropy, steps=6, rule=None):
    """State dicts before and after a plain torch loop on four images."""
    before = {k: v.clone() for k, v in module.state_dict().items()}
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = rule(module) if rule else torch.optim.SGD(parameters, lr=0.1)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4) % 2
    for _ in range(steps):
        optimizer.zero_grad()
        loss(module(images), labels).backward()
        optimizer.step()
    return before, {k: v.clone() for k, v in module.state_dict().items()}


def test_train_mode_is_read_off_the_files(audit, tmp_path):
    before, after = run(norms())
    outcome = audit("Norms", before, after)
    assert outcome.code == 0, outcome.err
    assert "from the files: norm '1' trained in train mode for 6 batches" in outcome.out
    assert json.loads((tmp_path / "run/evidence/evidence.json").read_text())["training"] != []
    assert (
        "set victim.mode=train"
        in audit("Norms", before, after, "victim.mode=eval", folder="x").error
    )
    assert "the recipe has 5" in audit("Norms", before, after, "recipe.epochs=5", folder="y").error


def test_a_dry_run_tells_what_was_understood(audit, tmp_path):
    before, after = run(norms())
    after = {f"module.{k}": v for k, v in after.items()}
    outcome = audit("Norms", before, {"net": after}, "dry_run=true")
    assert outcome.code == 0, outcome.err
    assert "final: taken from 'net', prefix 'module.' removed" in outcome.out
    assert "trained in train mode for 6 batches" in outcome.out and "6 steps" in outcome.out
    assert not (tmp_path / "run/evidence").exists()


def test_a_part_of_a_checkpoint(audit):
    before, after = run(deep())
    both = {"model": before, "ema": after}
    outcome = audit("Deep", {"ema": before}, both, "evidence.part=ema")
    assert outcome.code == 0, outcome.err
    assert "no part 'emma'" in audit("Deep", before, both, "evidence.part=emma", folder="x").error


def test_a_loss_of_torch(audit, tmp_path):
    loss = nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([1.0, 3.0]))
    said = (
        "recipe.loss._target_=torch.nn.CrossEntropyLoss",
        "+recipe.loss.label_smoothing=0.1",
        "+recipe.loss.weight=[1,3]",
    )
    outcome = audit("Deep", *run(deep(), loss=loss), *said)
    assert outcome.code == 0, outcome.err
    saved = json.loads((tmp_path / "run/evidence/evidence.json").read_text())["criterion"]["loss"]
    assert saved["label_smoothing"] == 0.1 and saved["weight"] == [1.0, 3.0]


def test_what_a_null_in_groups_freezes(audit, tmp_path):
    """On the command line as in Python; keys may hold brackets, dots and regular expressions."""
    module = deep()
    module[3].weight.requires_grad_(False)
    before, after = run(module)
    before["1.bias"] = after["1.bias"].clone()  # so that the files do not prove it
    rules = (
        'inner.rules={"3.weigh[t]": null, "re:3\\\\.(bias|w.*)": {_target_: simudy.SGD, lr: 0.1}, '
        '"*": {_target_: simudy.SGD, lr: 0.1}}'
    )
    group = ("inner._target_=simudy.dynamics.optim.Groups", f"+{rules}")
    outcome = audit("Deep", before, after, *group)
    assert outcome.code == 0, outcome.err
    saved = json.loads((tmp_path / "run/evidence/evidence.json").read_text())
    kept = saved["recipe"]["optimizer"]["rules"]
    assert list(kept) == ["3.weigh[t]", "re:3\\.(bias|w.*)", "*"] and kept["3.weigh[t]"] is None
    wrong = f"+{rules}".replace("lr: 0.1}, ", "lr: fast}, ")
    assert (
        "lr=fast: give a number" in audit("Deep", before, after, group[0], wrong, folder="x").error
    )


def test_paths_as_they_are(audit, cli, tmp_path):
    before, after = run(deep())
    torch.save(after, tmp_path / "größe=1 (b).pt")
    outcome = audit("Deep", before, after, "evidence.final=größe=1 (b).pt")
    assert outcome.code == 0, outcome.err


def test_a_search_without_one_finite_step_has_diverged(audit, cli, tmp_path, monkeypatch):
    from simudy.attack.methods.simudy import SimudyProblem

    whole = SimudyProblem.objective

    def nothing(self, progress):
        objective, distance = whole(self, progress)
        return objective * torch.nan, distance * torch.nan

    monkeypatch.setattr(SimudyProblem, "objective", nothing)
    for folder, iterations in (("few", 4), ("many", 30)):
        argv = (f"hydra.run.dir={folder}", f"outer.iterations={iterations}", "outer.average=0.5")
        outcome = cli(*argv)
        assert outcome.code == 0, outcome.err
        text = (tmp_path / folder / "result.json").read_text()
        assert "Infinity" not in text and "NaN" not in text
        found = result(tmp_path / folder)
        assert found["status"] == "diverged" and found["objective"] is found["distance"] is None
        assert found["ssim"] is found["ssim_paper"] is found["floor"] is None
        assert "diverged" in outcome.out and "ssim_paper" not in outcome.out
        assert "already diverged" in cli(*argv).out


def test_the_whole_recipe(cli, tmp_path):
    (tmp_path / "order.json").write_text(json.dumps([[0, 1], [2, 3], [3, 1], [0, 2]]))
    said = (
        "recipe.scheduler._target_=torch.optim.lr_scheduler.StepLR",
        *("+recipe.scheduler.step_size=1", "+recipe.scheduler.gamma=0.5"),
        *("recipe.scheduler_per=step", "recipe.batch_size=2", "recipe.drop_last=true"),
    )
    run = ("recipe.epochs=2", "recipe.seed=5")
    assert cli(*said, *run, "hydra.run.dir=a", "recipe.order=torch").code == 0
    saved = json.loads((tmp_path / "a/evidence/evidence.json").read_text())["recipe"]
    assert saved["scheduler"]["gamma"] == 0.5 and saved["seed"] == 5
    assert (saved["order"], saved["scheduler_per"], saved["drop_last"]) == ("torch", "step", True)
    assert cli(*said, *run, "hydra.run.dir=b", "recipe.order=order.json").code == 0
    half = ("recipe.accumulate=2", "recipe.scheduler_per=epoch")
    assert cli(*said, *half, *run, "hydra.run.dir=c").code == 0
    guess = ("attack.recipe.epochs=1", "+attack.recipe.order=torch")
    assert "2 steps simulated" in cli(*said, *run, *guess, "hydra.run.dir=d").out


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("recipe.order=nowhere.json", "recipe.order=nowhere.json cannot be read"),
        ("recipe.order=[0,1]", "recipe.order holds no rows of image numbers"),
        ("recipe.order=[[0,9]]", "images beyond the 4 there are"),
        ("recipe.accumulate=0", "recipe.accumulate=0: give a whole number"),
        ("recipe.scheduler_per=year", "recipe.scheduler_per=year: give epoch or step"),
        (
            "recipe.scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau",
            "decides by a metric",
        ),
        (
            "recipe.scheduler._target_=torch.optim.lr_scheduler.StepLr",
            "recipe.scheduler._target_=torch.optim.lr_scheduler.StepLr: cannot import it",
        ),
        ("+recipe.scheduler.step_size=1", "recipe.scheduler names no _target_"),
    ],
)
def test_a_recipe_that_cannot_be(cli, said, words):
    assert words in cli(said, "hydra.run.dir=run").error
