"""Checkpoints and recipes of other people's trainers, as an auditor met them: what is understood,
and that the true images land on the published weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from simudy import Evidence, simulate
from simudy.app.tasks import finish

SOURCE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, dropout=0.0):
        super().__init__(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Dropout(dropout),
                         nn.Linear(144, 3))

def warm_up(optimizer, steps=3):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / steps))

class WarmUp(torch.optim.lr_scheduler.LambdaLR):
    def __init__(self, optimizer, steps=3):
        super().__init__(optimizer, lambda t: min(1.0, (t + 1) / steps))
"""
N = 6
IMAGES = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(N) % 3
WORDS = (
    *("evidence.shape=[1,8,8]", "evidence.classes=3", f"evidence.n={N}"),
    *("model._target_=net_from_outside.Net", "outer.iterations=1", "hydra.run.dir=run"),
)


@pytest.fixture
def net(tmp_path, monkeypatch, cli):
    """Her module, in the working directory; no pictures, which take the longest."""
    monkeypatch.setattr(finish, "_draw", lambda *args: args[-1].gallery.write_bytes(b""))
    (tmp_path / "net_from_outside.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("net_from_outside", None)
    import net_from_outside as hers  # pyright: ignore[reportMissingImports]

    return hers.Net


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def train(module, optimizer, *, epochs=4, scheduler=None, after=lambda: None) -> None:
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(IMAGES), LABELS).backward()
        optimizer.step()
        after()
        if scheduler is not None:
            scheduler.step()


def landed(cli, net, *words: str) -> str:
    """What the command says, once the true images have landed on the weights."""
    shutil.rmtree("run", ignore_errors=True)
    outcome = cli(*WORDS, *words, tiny=False)
    assert outcome.code == 0, outcome.err
    evidence = Evidence.load("run/evidence", net())
    recipe = evidence.recipe
    batches, rules = recipe.collate(IMAGES, LABELS), recipe.rules(N)
    with torch.no_grad():
        end = simulate(evidence.model.loss, evidence.initial, batches, rules)
    off = max(float((end[k] - v).abs().max()) for k, v in evidence.final.items())
    moved = max(float((v - evidence.initial[k]).abs().max()) for k, v in evidence.final.items())
    assert off < 1e-5 < 1e-3 < moved, (off, recipe)
    return outcome.out


def test_a_trainer_s_folder_tells_its_optimizer_and_its_steps(cli, net):
    """Hugging Face's Trainer, and accelerate, whose names end in .bin."""
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for folder in ("c0", "c4"):
        Path(folder).mkdir()
        save_file(state(module), f"{folder}/model.safetensors")
        if folder == "c0":
            train(module, optimizer)
    torch.save(optimizer.state_dict(), "c4/optimizer.pt")
    Path("c4/trainer_state.json").write_text(json.dumps({"global_step": 4, "epoch": 4.0}))
    said = landed(cli, net, "evidence.initial=c0", "evidence.final=c4")
    assert "the optimizer was SGD with lr 0.05" in said and "the trainer counted 4 batches" in said
    Path("c4/optimizer.pt").rename("c4/optimizer.bin")
    landed(cli, net, "evidence.initial=c0", "evidence.final=c4")


def test_shards_of_pickles(cli, net):
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for folder in ("c0", "c4"):
        Path(folder).mkdir()
        place = {}
        for i, (name, tensor) in enumerate(state(module).items()):
            place[name] = f"pytorch_model-{i}.bin"
            torch.save({name: tensor}, f"{folder}/{place[name]}")
        index = json.dumps({"metadata": {}, "weight_map": place})
        Path(folder, "pytorch_model.bin.index.json").write_text(index)
        if folder == "c0":
            train(module, optimizer)
    ends = "evidence.initial=c0", "evidence.final=c4"
    landed(cli, net, *ends, "inner.lr=0.05", "recipe.epochs=4")


def test_what_lies_beside_weights_does_no_harm(cli, net):
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, nesterov=True)

    def checkpoint(epoch: int) -> dict[str, object]:
        args = argparse.Namespace(lr=0.05, out=Path("runs"), tags=["a"])
        kept = {"args": args, "epoch": np.int64(epoch), "best": np.float32(0.3)}
        return {"model": state(module), "optimizer": copy.deepcopy(optimizer.state_dict()), **kept}

    torch.save(checkpoint(0), "a.pt")
    train(module, optimizer)
    torch.save(checkpoint(4), "b.pt")
    landed(cli, net, "evidence.initial=a.pt", "evidence.final=b.pt", "recipe.epochs=4")


def test_what_nobody_told_is_said_to_be_assumed(cli, net):
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    torch.save({"state_dict": state(module), "epoch": 0}, "a.pt")
    train(module, optimizer)
    torch.save({"state_dict": state(module), "epoch": np.int64(4)}, "b.pt")
    ends = "evidence.initial=a.pt", "evidence.final=b.pt"
    outcome = cli(*WORDS, *ends, "dry_run=true", tiny=False)
    assert "nobody told inner.lr=0.01: assumed" in outcome.out
    assert "recipe.epochs=10: assumed (the files' epoch: 0 and 4)" in outcome.out
    said = landed(cli, net, *ends, "inner.lr=0.01", "recipe.epochs=4")
    assert "assumed" not in said


@pytest.mark.parametrize("name", ["warm_up", "WarmUp"])
def test_a_scheduler_of_her_own(cli, net, name):
    import net_from_outside as hers  # pyright: ignore[reportMissingImports]

    module = net()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    torch.save(state(module), "a.pt")
    train(module, optimizer, scheduler=getattr(hers, name)(optimizer))
    torch.save(state(module), "b.pt")
    rule = "inner=adamw", "inner.lr=0.01", "recipe.epochs=4"
    hook = f"recipe.scheduler._target_=net_from_outside.{name}", "recipe.scheduler_per=step"
    landed(cli, net, "evidence.initial=a.pt", "evidence.final=b.pt", *rule, *hook)
    facts = json.loads(Path("run/evidence/evidence.json").read_text())
    assert facts["recipe"]["schedule"]["lr"] == pytest.approx([1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize("kind", ["SGD", "Adam", "ASGD", "Rprop"])
def test_from_epoch_k_to_k_plus_3(cli, net, kind):
    """Moments of a live optimizer at epoch k go along."""
    module = net()
    options = {"lr": 0.05, "momentum": 0.9} if kind == "SGD" else {"lr": 0.005}
    optimizer = getattr(torch.optim, kind)(module.parameters(), **options)

    def checkpoint() -> dict[str, object]:
        return {"model": state(module), "optimizer": copy.deepcopy(optimizer.state_dict())}

    train(module, optimizer, epochs=2)
    torch.save(checkpoint(), "a.pt")
    train(module, optimizer, epochs=3)
    torch.save(checkpoint(), "b.pt")
    how = {"SGD": ("recipe.epochs=3",), "Adam": ("inner=adam",)}.get(kind, ())
    landed(cli, net, "evidence.initial=a.pt", "evidence.final=b.pt", *how)
    assert Path("run/evidence/moments.safetensors").exists()


def test_dropout_that_was_on_is_refused_and_off_is_fine(cli, net):
    module = net(dropout=0.5).eval()
    torch.save(state(module), "a.pt")
    train(module, torch.optim.SGD(module.parameters(), lr=0.05))
    torch.save(state(module), "b.pt")
    ends = ("evidence.initial=a.pt", "evidence.final=b.pt", "+model.dropout=0.5")
    words = *ends, "inner.lr=0.05", "recipe.epochs=4"
    error = cli(*WORDS, *words, "victim.mode=train", tiny=False).error
    assert "drops units at random in train mode" in error and "eval mode" in error
    error = cli(*WORDS, *words, tiny=False).error
    assert "set victim.mode=eval if the run had it off, or its rate to 0" in error
    landed(cli, net, *words, "victim.mode=eval")


def test_a_whole_module_is_not_unpickled(cli, net):
    module = net()
    torch.save(module, "a.pt")
    torch.save(module, "b.pt")
    error = cli(*WORDS, "evidence.initial=a.pt", "evidence.final=b.pt", tiny=False).error
    assert "would run" in error and "save a state_dict" in error


def test_rows_of_a_table_are_refused_before_the_search(cli, net):
    words = [w.replace("[1,8,8]", "[30]") for w in WORDS]
    error = cli(*words, "evidence.initial=a.pt", "evidence.final=b.pt", tiny=False).error
    assert "rows of a table and volumes are reconstructed from Python" in error


def test_one_cycle_writes_into_the_groups_and_hides_no_class(cli, net):
    """Beside the rate it moves the momentum: the saved one is not the script's."""
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4)
    torch.save(state(module), "a.pt")
    train(module, optimizer, scheduler=scheduler)
    torch.save({"model": state(module), "optimizer": optimizer.state_dict()}, "b.pt")
    how = "recipe.scheduler._target_=torch.optim.lr_scheduler.OneCycleLR", "recipe.epochs=4"
    options = "+recipe.scheduler.max_lr=0.1", "+recipe.scheduler.total_steps=4"
    ends = "evidence.initial=a.pt", "evidence.final=b.pt"
    landed(cli, net, *ends, *how, *options)
    landed(cli, net, *ends, *how, *options, "inner.momentum=0.9")
