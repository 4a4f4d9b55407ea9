"""The command line, from settings to files."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime

import pytest
from conftest import TINY, result
from safetensors.torch import load_file

from simudy.app.cli import run_cli

KEYS = [
    "status",
    *("ssim_paper", "ssim", "psnr", "mse", "recovered", "floor"),
    *("verdict_counts", "verdicts"),
    *("distance", "objective", "iterations", "seconds", "seconds_per_iteration", "peak_memory_mb"),
    *("n", "limits", "device", "versions", "config_hash"),
]
FILES = (
    "config.yaml",
    "checkpoint",
    "history.csv",
    "reconstruction.safetensors",
    "gallery.png",
    "gallery.html",
    "report.html",
)


def test_help_is_free_of_torch():
    ask = "sys.exit(run(['--help']) or 'torch' in sys.modules)"
    code = f"import sys; from simudy.app.cli import run_cli as run; {ask}"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "evidence.initial" in shown.stdout and "model: cnn, mlp, resnet, vit" in shown.stdout


def test_a_reader_who_leaves_is_no_error():
    command = [sys.executable, "-c", "from simudy.app.cli import main; main()", "--help"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as shown:
        assert shown.stdout is not None and shown.stderr is not None
        shown.stdout.close()
        assert shown.stderr.read() == ""
    assert shown.returncode == 0


def test_the_console_script_refuses_a_misspelt_key(tmp_path):
    command = [sys.executable, "-c", "from simudy.app.cli import main; main()", "outer.iteration=3"]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert refused.stderr.startswith(
        "simudy: error: no setting outer.iteration: did you mean outer.iterations?"
    )


def test_a_run_leaves_what_the_design_says(cli, tmp_path):
    outcome = cli("hydra.run.dir=a", "recipe.batch_size=2", "prior.tv=0.01", "distance=layerwise")
    assert outcome.code == 0, outcome.err
    first = next(line for line in outcome.out.splitlines() if "steps simulated" in line)
    assert (
        "MLP with 1,328 parameters · 4 images of 1×8×8: 256 pixels to recover by 16 coefficients · "
        "6 steps" in first
    )
    assert "gallery: " in outcome.out and (tmp_path / "a/gallery.png").stat().st_size > 1000
    assert all((tmp_path / "a" / name).is_file() for name in FILES)
    assert list(result(tmp_path / "a")) == KEYS
    assert set(result(tmp_path / "a")["floor"]) == {"heldout", "noise", "class_mean"}
    assert result(tmp_path / "a")["status"] == "finished" and result(tmp_path / "a")["n"] == 4
    assert load_file(tmp_path / "a/reconstruction.safetensors")["images"].shape == (4, 1, 8, 8)


def test_a_finished_run_is_not_run_again_and_its_directory_is_its_own(cli, tmp_path):
    assert cli("hydra.run.dir=a").code == 0
    before = (tmp_path / "a/result.json").stat().st_mtime_ns
    again = cli("hydra.run.dir=a", "intervals.log=1")
    assert again.code == 0 and "already finished" in again.out
    assert (tmp_path / "a/result.json").stat().st_mtime_ns == before
    error = cli("hydra.run.dir=a", "outer.lr=0.5").error
    assert "outer.lr was 0.1 and is now 0.5" in error and "set another hydra.run.dir" in error


def test_runs_of_the_same_second_have_a_directory_each(cli, tmp_path, monkeypatch):
    class Clock:
        ticks = iter(range(1000))

        @classmethod
        def now(cls) -> datetime:
            return datetime(2026, 1, 1, microsecond=next(cls.ticks))

    monkeypatch.setattr("hydra.core.utils.datetime", Clock)
    assert [cli("task=victim", f"seed={seed}").code for seed in (0, 1)] == [0, 0]
    assert len(list(tmp_path.glob("runs/*/*/evidence"))) == 2


def test_stages_one_by_one_are_the_whole(cli, tmp_path):
    assert cli("hydra.run.dir=whole").code == 0
    assert "no evidence.json in" in cli("hydra.run.dir=parts", "task=reconstruct").error
    assert cli("hydra.run.dir=parts", "task=victim").code == 0
    assert not (tmp_path / "parts/result.json").exists()
    assert cli("hydra.run.dir=parts", "task=reconstruct").code == 0
    elsewhere = cli("hydra.run.dir=elsewhere", "evidence.folder=parts/evidence", "task=reconstruct")
    assert elsewhere.code == 0, elsewhere.err
    (tmp_path / "parts/gallery.png").unlink()
    assert cli("hydra.run.dir=parts", "task=score", tiny=False).code == 0
    assert (tmp_path / "parts/gallery.png").exists()
    same = ("ssim_paper", "ssim", "floor", "objective")
    whole, *others = [
        {k: result(tmp_path / name)[k] for k in same} for name in ("whole", "parts", "elsewhere")
    ]
    assert others == [whole, whole]


def test_labels_given_learned_and_taken_from_the_secret(cli, tmp_path):
    for i, labels in enumerate(("learned", "true", "[0,1,1,0]", "wrong")):
        assert cli(f"hydra.run.dir={i}", f"dummy.labels={labels}").code == 0
    taken = [load_file(tmp_path / f"{i}/reconstruction.safetensors")["labels"] for i in range(4)]
    assert taken[0].shape == (4, 2)
    assert taken[1].tolist() == [0, 1, 0, 1] and taken[2].tolist() == [0, 1, 1, 0]
    assert taken[3].tolist() == [1, 0, 1, 0]


def test_a_guess_of_the_recipe_and_a_learned_step_size(cli, tmp_path):
    guess = (
        "attack.inner.lr=0.02",
        "attack.recipe.epochs=2",
        "dummy.learn=[lr]",
        "outer.lrs={log_lr: 0.05}",
    )
    outcome = cli(
        "hydra.run.dir=a", *guess, "gradient=mixed", "adjoint=recompute", "adjoint.every=2"
    )
    assert outcome.code == 0 and "2 steps simulated" in outcome.out
    assert load_file(tmp_path / "a/reconstruction.safetensors")["learned.lr"] > 0


@pytest.mark.parametrize("backend", ["torchopt", "higher"])
def test_another_back_end_computes_the_rule(cli, tmp_path, backend):
    assert cli("hydra.run.dir=ours", "gradient=reverse").code == 0
    assert (
        cli(
            "hydra.run.dir=theirs", "gradient=reverse", "dummy.images=pixels", f"backend={backend}"
        ).code
        == 0
    )


OWN = """
from dataclasses import dataclass
from torch import nn
from simudy.dynamics.optim import PerTensor

@dataclass
class SignSGD(PerTensor):
    lr: float = 0.01
    beta: float = 0.0
    def step(self, grad, state, param):
        return param - self.lr * (grad / (grad.abs() + 1e-3) + self.beta * grad), None

class Net(nn.Module):
    def __init__(self, hidden: int = 4):
        super().__init__()
        first, last = nn.Linear(64, hidden), nn.Linear(hidden, 2)
        self.layers = nn.Sequential(nn.Flatten(), first, nn.Tanh(), last)
    def forward(self, x):
        return self.layers(x)
"""


def test_a_rule_and_a_model_of_ones_own(cli, tmp_path):
    (tmp_path / "own_of_test_cli.py").write_text(OWN)
    rule = (
        "inner._target_=own_of_test_cli.SignSGD",
        "+inner.beta=0.3",
        "dummy.images=pixels",
        "gradient=mixed",
    )
    small = ("data.n=4", "data.size=8", "recipe.epochs=3", "outer.iterations=4")
    model = ("model._target_=own_of_test_cli.Net", "+model.hidden=5")
    outcome = cli(*small, *rule, *model, "hydra.run.dir=a", tiny=False)
    assert outcome.code == 0, outcome.err
    assert "Net with 337 parameters" in outcome.out
    assert (
        "inner.beta=high: give a number"
        in cli(*small, *rule[:1], "+inner.beta=high", tiny=False).error
    )
    assert (
        "SignSGD takes no 'betta': did you mean beta?"
        in cli(*small, *rule[:1], "+inner.betta=1", tiny=False).error
    )
    assert (
        "set dummy.images=frequencies"
        in cli(*small, *rule[:2], "dummy.images=span", tiny=False).error
    )


def test_a_pretrained_victim_is_cached(cli, tmp_path, with_public_images):
    victim = ("victim=pretrained", "victim.pretrain.epochs=2")
    run = (*with_public_images, *victim, "outer.iterations=2")
    first = cli(*run, "hydra.run.dir=a", tiny=False)
    assert first.code == 0 and "pretraining: epoch 2 of 2" in first.out, first.err
    second = cli(*run, "hydra.run.dir=b", tiny=False)
    assert second.code == 0 and "pretrained weights from" in second.out
    assert result(tmp_path / "a")["objective"] == result(tmp_path / "b")["objective"]
    next((tmp_path / "cache/pretrained").iterdir()).write_bytes(b"damaged")
    assert "pretraining again" in cli(*run, "hydra.run.dir=c", tiny=False).out
    assert result(tmp_path / "a")["objective"] == result(tmp_path / "c")["objective"]
    adam = cli(
        *run, "victim.pretrain.optimizer._target_=torch.optim.Adam", "hydra.run.dir=e", tiny=False
    )
    assert adam.code == 0 and "pretraining: epoch 2 of 2" in adam.out, adam.err

    none = cli("victim=pretrained", "hydra.run.dir=d").error
    assert "no images to pretrain on" in none


def test_a_sweep_skips_what_is_finished_and_names_what_failed(cli, tmp_path):
    sweep = ("-m", "seed=0,1", "distance=cosine,manhattan", "hydra.sweep.dir=s")
    first = cli(*sweep)
    assert first.code == 2
    finished = sorted(tmp_path.glob("s/*/result.json"))
    assert len(finished) == 2 and len(list(tmp_path.glob("s/*/failed.txt"))) == 2
    assert first.out.count("failed: s/") == 2 and "Traceback" not in first.out + first.err
    times = [path.stat().st_mtime_ns for path in finished]
    assert all(result(path.parent)["config_hash"] == path.parent.name for path in finished)
    second = cli(*sweep)
    assert second.code == 2 and second.out.count("already finished") == 2
    assert [path.stat().st_mtime_ns for path in finished] == times
    assert cli("-m", "seed=0,1", "hydra.sweep.dir=s").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "simudy: interrupted"),
        ("signals.last_words('simudy: error: why')", "simudy: error: why"),
        ("signals.last_words(None)", ""),
    ],
)
def test_a_signal_to_a_process_that_is_ending_says_why_it_ends_once(words, said):
    """As torchrun sends one to all when the first has ended."""
    script = f"from simudy.app import signals\n{words}\nsignals.leave_at_once(15, None)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 130 and ended.stderr.strip() == said


def test_a_dry_run_keeps_nothing(cli, tmp_path):
    outcome = cli("dry_run=true", "hydra.run.dir=a")
    assert (
        outcome.code == 0 and "3 steps simulated" in outcome.out and "one outer step" in outcome.out
    )
    assert {path.name for path in (tmp_path / "a").iterdir()} == {".hydra", "run.log"}


def test_a_defect_of_ours_is_one_line_too_and_says_how_to_see_more(cli, monkeypatch):
    monkeypatch.setattr("simudy.app.tasks.run.run_stages", lambda cfg, folder: 1 / 0)
    assert cli().error.startswith("ZeroDivisionError: division by zero (not foreseen: SIMUDY_DEBUG")
    monkeypatch.setenv("SIMUDY_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run_cli(list(TINY))
