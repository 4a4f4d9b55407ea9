"""Jobs of a search by Optuna that are stopped early: what they leave, and what is refused."""

from __future__ import annotations

import json
import sqlite3
from importlib.metadata import version

import pytest
import torch
from conftest import TINY, result
from safetensors.torch import load_file
from test_launchers import launched

from simudy.app.sweep import optional, pruning
from simudy.app.sweep.pruning import Pruning, is_told

NAMED = "pruner._target_=simudy.app.sweep.pruning.median"
STUDY = ("hydra.sweeper.storage=sqlite:///study.db", "hydra.sweeper.study_name=lr")


class Trial:
    """Optuna's, as far as it is asked: gives up at one iteration."""

    def __init__(self, ends=10**6):
        self.ends, self.told, self.notes = ends, {}, {}

    def report(self, value, step):
        self.told[step] = value

    def should_prune(self):
        return max(self.told) >= self.ends

    def set_user_attr(self, key, value):
        self.notes[key] = value


class Broken(Trial):
    def report(self, value, step):
        raise ConnectionError("no database")


def with_trial(monkeypatch, trial):
    monkeypatch.setattr(pruning, "new_pruning", lambda cfg: Pruning(trial))


@pytest.mark.parametrize(
    ("iterations", "told"), [(4, [1, 2, 3]), (25, [*range(1, 11), 20]), (10, [*range(1, 10)])]
)
def test_a_study_is_told_of_ever_fewer_iterations(cli, tmp_path, monkeypatch, iterations, told):
    with_trial(monkeypatch, trial := Trial())
    assert cli(NAMED, f"outer.iterations={iterations}", "hydra.run.dir=a").code == 0
    assert list(trial.told) == told
    rows = (tmp_path / "a/history.csv").read_text().splitlines()[1:]
    objectives = [float(row.split(",")[1]) for row in rows]
    best = [min(objectives[:i]) for i in told]
    assert list(trial.told.values()) == pytest.approx(best, rel=1e-5)
    assert [i for i in range(95, 1001) if is_told(i)] == [*range(100, 1001, 100)]


def test_a_pruned_run_is_done_until_it_is_asked_for_without_a_pruner(cli, tmp_path, monkeypatch):
    with_trial(monkeypatch, trial := Trial(ends=2))
    first = cli(NAMED, "hydra.run.dir=a")
    found = result(tmp_path / "a")
    assert first.code == 0 and "pruned at iteration 2" in first.out
    assert (found["status"], found["iterations"]) == ("pruned", 2) and trial.notes == {"pruned": 2}
    assert found["objective"] == pytest.approx(trial.told[2]) and found["ssim_paper"] is not None
    assert "already pruned" in cli(NAMED, "hydra.run.dir=a").out
    assert result(tmp_path / "a") == found
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert "going on from iteration 2" in cli("hydra.run.dir=a").out
    assert result(tmp_path / "a")["status"] == "finished" and cli("hydra.run.dir=b").code == 0
    one, other = (load_file(tmp_path / name / "reconstruction.safetensors") for name in "ab")
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_database_that_fails_costs_a_line(cli, tmp_path, monkeypatch):
    with_trial(monkeypatch, Broken())
    outcome = cli(NAMED, "hydra.run.dir=a")
    assert outcome.code == 0 and result(tmp_path / "a")["status"] == "finished"
    said = "pruner: ConnectionError: no database; the run goes on without it"
    assert outcome.out.count(said) == 1


@pytest.mark.parametrize("words", [(), ("-m", "seed=0,1")])
def test_a_pruner_outside_of_a_search_is_refused(cli, tmp_path, monkeypatch, words):
    monkeypatch.setattr(optional, "_is_there", lambda module: True)
    error = cli("pruner=median", *words, "hydra.run.dir=a", "hydra.sweep.dir=a").error
    assert error.startswith("a pruner stops jobs of a search by Optuna: add -m hydra/sweeper=optu")
    assert not list(tmp_path.glob("a/**/evidence"))  # before anything is trained


def test_a_pruner_without_optuna_is_named_with_its_install(cli, monkeypatch):
    monkeypatch.setattr(optional, "_is_there", lambda module: False)
    assert "pip install 'simudy[sweeps]'" in cli("pruner=halving").error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pruner=median", *STUDY[:1]], "a pruner wants a study that is stored: add hydra.sweeper"),
        (["pruner=median", *STUDY[1:]], "a pruner wants a study that is stored: add hydra.sweeper"),
        (["pruner=halving", "pruner.reduction_factor=1", *STUDY], "give a whole number, from 2 to"),
        (["pruner=median", "parallel=images", *STUDY], "do not go together: leave one out"),
    ],
)
def test_a_pruner_without_its_study_is_refused_at_launch(cli, tmp_path, words, said):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert said in cli("-m", "hydra/sweeper=optuna", "seed=0,1", *words).error
    assert not (tmp_path / "runs").exists() and not (tmp_path / "study.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_search_prunes_and_runs_nothing_twice(tmp_path, launcher):
    """Six draws of one seed, launched twice: the second time all are done."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    if int(version("sqlalchemy").partition(".")[0]) > 1:
        pytest.skip("optuna 2 stores studies through SQLAlchemy 1: pip install 'simudy[sweeps]'")
    words = [*TINY, "hydra/sweeper=optuna", "hydra/sweeper/sampler=random", *STUDY]
    words += ["hydra.sweeper.sampler.seed=1", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2"]
    words += ["outer.lr=interval(0.0001,0.3)", "outer.iterations=20", "pruner=median"]
    words += ["pruner.n_startup_trials=2", "pruner.n_warmup_steps=3", f"hydra/launcher={launcher}"]
    first = launched(tmp_path, *words)
    assert first.returncode == 0, first.stdout + first.stderr
    found = {path: json.loads(path.read_text()) for path in tmp_path.glob("s/*/result.json")}
    pruned = [one for one in found.values() if one["status"] == "pruned"]
    assert len(found) == 6 and 1 <= len(pruned) <= 4
    assert all(3 <= one["iterations"] < 20 for one in pruned)
    assert states(tmp_path) == ["COMPLETE"] * 6 and noted(tmp_path) == len(pruned)
    times = {path: path.stat().st_mtime_ns for path in found}
    again = launched(tmp_path, *words)
    assert again.returncode == 0 and again.stdout.count("already pruned") == len(pruned)
    assert states(tmp_path) == ["COMPLETE"] * 12
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/result.json")} == times


def states(folder):
    rows = sqlite3.connect(folder / "study.db").execute("select state from trials")
    return [state for (state,) in rows]


def noted(folder):
    asked = "select count(*) from trial_user_attributes where key = 'pruned'"
    return sqlite3.connect(folder / "study.db").execute(asked).fetchone()[0]
