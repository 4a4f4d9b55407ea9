"""Weights from inside a run on the command line: kept of our own victim, or a person's files."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import result
from safetensors.torch import load_file
from torch import nn

FILES = ("evidence.initial=a.pt", "evidence.final=b.pt", "evidence.shape=[1,8,8]")
AUDIT = (*FILES, "evidence.classes=2", "evidence.n=4", "model.width=12", "inner.lr=0.1")
SHORT = ("recipe.epochs=3", "outer.iterations=3", "outer.refine=0")


@pytest.fixture
def files(tmp_path):
    """Weights before and after each of three epochs of a plain torch loop, in files."""
    from simudy.victim.models import MLP

    torch.manual_seed(0)
    module = MLP((1, 8, 8), 2, width=12)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4) % 2
    states = [{k: v.clone() for k, v in module.state_dict().items()}]
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
        states.append({k: v.clone() for k, v in module.state_dict().items()})
    for name, state in zip(("a", "c1", "c2", "b"), states, strict=True):
        torch.save(state, tmp_path / f"{name}.pt")
    for name, state, before in zip(("u1", "u2", "u3"), states[1:], states, strict=False):
        torch.save({k: state[k] - before[k] for k in state}, tmp_path / f"{name}.pt")
    return states


def test_a_victim_keeps_weights_and_the_attack_uses_them(cli, tmp_path):
    outcome = cli("victim.checkpoints=2", "outer.iterations=1", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "3 segments" in outcome.out + outcome.err
    assert sorted(p.name for p in (tmp_path / "run/evidence/checkpoints").iterdir()) == [
        "1.safetensors",
        "2.safetensors",
    ]
    assert result(tmp_path / "run")["distance"] < 1e-4  # refined by the sum of the segments
    assert cli("task=victim", "hydra.run.dir=plain").code == 0
    ends = [load_file(tmp_path / d / "evidence/final.safetensors") for d in ("run", "plain")]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)  # what is kept changes no step


def test_files_of_an_epoch_each(cli, files, tmp_path):
    outcome = cli(
        *AUDIT, *SHORT, "evidence.checkpoints=[c1.pt,c2.pt]", "hydra.run.dir=run", tiny=False
    )
    assert outcome.code == 0, outcome.err
    held = load_file(tmp_path / "run/evidence/checkpoints/2.safetensors")
    torch.testing.assert_close(held, dict(files[2]), rtol=0, atol=0)


def test_updates_and_stated_steps(cli, files, tmp_path):
    outcome = cli(
        *(word.replace("b.pt", "u3.pt") for word in AUDIT),
        *SHORT,
        "evidence.checkpoints=[u1.pt,u2.pt]",
        "evidence.checkpoint_steps=[1,2]",
        "evidence.updates=true",
        "hydra.run.dir=run",
        tiny=False,
    )
    assert outcome.code == 0, outcome.err
    for name, state in (("checkpoints/1", files[1]), ("checkpoints/2", files[2])):
        held = load_file(tmp_path / f"run/evidence/{name}.safetensors")
        torch.testing.assert_close(held, dict(state), rtol=1e-5, atol=1e-7)
    final = load_file(tmp_path / "run/evidence/final.safetensors")
    torch.testing.assert_close(final, dict(files[3]), rtol=1e-5, atol=1e-7)


def test_rounds_resumed_from_a_servers_weights(cli, files, tmp_path):
    rounds = ("evidence.checkpoints=[c1.pt]", "evidence.resumed=[c2.pt]")
    outcome = cli(
        *AUDIT, *SHORT, *rounds, "evidence.checkpoint_steps=[1]", "hydra.run.dir=run", tiny=False
    )
    assert outcome.code == 0, outcome.err
    held = load_file(tmp_path / "run/evidence/checkpoints/1_resumed.safetensors")
    torch.testing.assert_close(held, dict(files[2]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evidence.checkpoints=[c1.pt]"], "1 evidence.checkpoints in a run of 3 epochs"),
        (["evidence.checkpoints=[c2.pt,c1.pt]", "evidence.checkpoint_steps=[2,1]"], "ascending"),
        (["evidence.checkpoints=[c1.pt]", "evidence.checkpoint_steps=[1,2]"], "one a file"),
        (["evidence.checkpoints=[c1.pt]", "evidence.checkpoint_steps=[3]"], "the recipe has 3"),
        (["evidence.checkpoints=[no.pt]", "evidence.checkpoint_steps=[1]"], "no weights at"),
        (["evidence.checkpoints=[a.pt]", "evidence.checkpoint_steps=[1]"], "leave one out"),
        (
            ["evidence.checkpoints=[c1.pt,c2.pt]", "evidence.resumed=[c1.pt]"],
            "one file a checkpoint",
        ),
        (
            ["evidence.checkpoints=[c1.pt,c2.pt]", "attack=surrogate"],
            "set attack=simudy",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(cli, files, words, said):
    assert said in cli(*AUDIT, *SHORT, *words, "hydra.run.dir=run", tiny=False).error


def test_more_weights_than_steps_is_one_line(cli):
    assert "has 2 between its ends" in cli("victim.checkpoints=3", "hydra.run.dir=run").error


def test_evidence_of_a_private_victim_does_not_tell_the_noise(cli, tmp_path):
    outcome = cli(
        "task=victim",
        "inner._target_=simudy.dynamics.optim.private",
        "+inner.rule._target_=simudy.SGD",
        "+inner.rule.lr=0.1",
        "+inner.noise=0.5",
        "+inner.samples=4",
        "recipe.batch_size=1",
        "hydra.run.dir=run",
    )
    assert outcome.code == 0, outcome.err
    told = (tmp_path / "run/evidence/evidence.json").read_text()
    assert "Accumulated" in told
    assert "Noised" not in told


def test_what_is_published_is_what_the_attack_and_the_exposure_read(cli, tmp_path):
    assert cli("task=victim", "hydra.run.dir=plain").code == 0
    said = ("victim.publish.rounding=bfloat16", "victim.publish.noise=0.1")
    assert cli("task=victim", *said, "hydra.run.dir=run").code == 0
    ends = [load_file(tmp_path / d / "evidence/final.safetensors") for d in ("plain", "run")]
    for name, true in ends[0].items():
        shown = ends[1][name]
        assert not torch.equal(true, shown)
        torch.testing.assert_close(shown, shown.bfloat16().float(), rtol=0, atol=0)
    facts = json.loads((tmp_path / "run/evidence/evidence.json").read_text())
    assert facts["precision"] == "bfloat16"
    assert set(facts["hidden"]) == set(ends[0])
    assert "victim.publish.noise" in cli("victim.publish.noise=-1", "hydra.run.dir=no").error
