"""What is known of a run while it runs: its live history, and trackers."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from conftest import TINY, result

from simudy.app.store import history
from simudy.app.tracking import TensorBoard

OWN = """
import json
from pathlib import Path

class Notes:
    def __init__(self, folder: str, fails: str = ""):
        self.path, self.fails = Path(folder) / "notes.txt", fails
    def note(self, kind, *said):
        if kind == self.fails:
            raise ConnectionError("no\\nserver")
        with self.path.open("a") as file:
            file.write(json.dumps([kind, *said], default=str) + "\\n")
    def start(self, settings): self.note("start", settings["outer"]["lr"])
    def log(self, step, values):
        lines = Path(self.path.parent / "history.csv").read_text().splitlines()
        assert lines[-1].startswith(f"{step},"), lines  # on disk before the next step
        self.note("log", step, sorted(values))
    def finish(self, result): self.note("finish", result["status"], result["ssim_paper"])

class Half:
    def start(self, settings): pass
    def log(self, step, values): pass
"""
NOTES = ("tracker._target_=own_of_test_tracking.Notes", "hydra.run.dir=a")
PAGE = Path(__file__).parents[2] / "docs" / "guides" / "track.md"


@pytest.fixture(autouse=True)
def own(tmp_path):
    (tmp_path / "own_of_test_tracking.py").write_text(OWN)


def notes(folder: Path) -> list[list]:
    import json

    return [json.loads(line) for line in (folder / "notes.txt").read_text().splitlines()]


def test_a_tracker_is_told_of_every_row_as_it_is_written(cli, tmp_path):
    outcome = cli(*NOTES)
    assert outcome.code == 0, outcome.err
    told = notes(tmp_path / "a")
    assert told[0] == ["start", 0.1]
    assert told[1:-1] == [["log", i, ["distance", "objective", "seconds"]] for i in (1, 2, 3, 4)]
    found = result(tmp_path / "a")
    assert told[-1] == ["finish", "finished", found["ssim_paper"]]
    assert cli("hydra.run.dir=b").code == 0
    assert found["config_hash"] == result(tmp_path / "b")["config_hash"]
    same = [history.load(tmp_path / name / "history.csv") for name in "ab"]
    assert [row["objective"] for row in same[0]] == [row["objective"] for row in same[1]]


@pytest.mark.parametrize("method", ["start", "log", "finish"])
def test_a_tracker_that_fails_costs_a_line(cli, tmp_path, method):
    outcome = cli(*NOTES, f"+tracker.fails={method}")
    assert outcome.code == 0, outcome.err
    said = f"tracker.{method}: ConnectionError: no server; the run goes on without it"
    assert outcome.out.splitlines().count(said) == 1
    assert result(tmp_path / "a")["status"] == "finished"


@pytest.mark.parametrize(
    ("tracker", "words"),
    [
        ("own_of_test_tracking.Half", "has no method finish: give it start(settings)"),
        ("own_of_test_tracking.None_", "cannot import it"),
        ("own_of_test_tracking.Notes +tracker.fail=x", "takes no 'fail': did you mean fails?"),
    ],
)
def test_a_tracker_that_is_none_is_refused_before_the_victim(cli, tmp_path, tracker, words):
    assert words in cli(f"tracker._target_={tracker}".split()[0], *tracker.split()[1:]).error
    assert not list(tmp_path.glob("runs/**/evidence"))


KILLED = """
import os, signal, sys
from simudy.attack.search import Search
inner, left = Search.step, [5]
def deadly(self):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(self)
Search.step = deadly
from simudy.app.cli import run_cli
sys.exit(run_cli(sys.argv[1:]))
"""


def test_a_tracker_survives_a_kill(cli, tmp_path):
    run = (*TINY, "outer.iterations=8", *NOTES)
    killed = [sys.executable, "-c", KILLED, *run, "intervals.checkpoint=0"]
    assert subprocess.run(killed, cwd=tmp_path, capture_output=True).returncode == -9
    assert [row["iteration"] for row in history.load(tmp_path / "a/history.csv")] == list("1234")
    assert cli(*run, "intervals.checkpoint=0", tiny=False).code == 0
    told = notes(tmp_path / "a")
    assert [word for word, *_ in told].count("start") == 2 and told[-1][0] == "finish"
    assert {said[1] for said in told if said[0] == "log"} == set(range(1, 9))
    rows = [row["iteration"] for row in history.load(tmp_path / "a/history.csv")]
    assert rows == list("12345678")


def test_rows_after_the_last_checkpoint_are_written_anew(tmp_path):
    path = tmp_path / "history.csv"
    rows = [dict.fromkeys(history.COLUMNS, i) for i in range(1, 6)]
    history.save(path, rows)  # a launch that was killed after step 5, its checkpoint of step 3
    live = history.LiveHistory(path, known=3)
    assert live.add(rows[:3]) == [] and len(history.load(path)) == 5
    assert live.add(rows[:4]) == rows[3:4] and len(history.load(path)) == 4
    assert live.add(rows) == rows[4:] and len(history.load(path)) == 5


def test_a_tracker_that_a_directory_names_is_not_read_back(cli, tmp_path):
    assert cli("hydra.run.dir=a").code == 0
    config = tmp_path / "a" / "config.yaml"
    named = config.read_text().replace(
        "tracker:\n  _target_: null", "tracker:\n  _target_: bad.Spy"
    )
    assert "bad.Spy" in named
    config.write_text(named)
    (tmp_path / "bad.py").write_text("open('imported', 'w').close()\nclass Spy: pass\n")
    assert cli("hydra.run.dir=a", "task=score", tiny=False).code == 0
    assert not (tmp_path / "imported").exists()


def test_tensorboard_that_is_not_installed(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    error = cli("tracker=tensorboard").error
    assert error == (
        "tracker=tensorboard needs TensorBoard: pip install 'simudy[tensorboard]', or set "
        "tracker=null"
    )


def test_tensorboard(cli, tmp_path):
    pytest.importorskip("tensorboard", reason="an extra: pip install simudy[tensorboard]")
    loader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    assert cli("tracker=tensorboard", "hydra.run.dir=a").code == 0
    events = loader.EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    events.Reload()
    rows = history.load(tmp_path / "a/history.csv")
    assert [e.step for e in events.Scalars("distance")] == [1, 2, 3, 4]
    told, known = events.Scalars("distance")[-1].value, float(rows[-1]["distance"])
    assert told == pytest.approx(known, rel=1e-5)
    assert events.Scalars("result/ssim_paper")
    again = TensorBoard(str(tmp_path / "a"))  # launched again from a checkpoint of step 2
    again.log(3, {"distance": 0.5})
    again.finish({})
    events = loader.EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("distance")] == [1, 2, 3]


class Called:
    """A stand-in for a package or a run of it: writes down what is asked of it."""

    def __init__(self, calls: list, name: str = ""):
        self._calls, self._name = calls, name

    def __getattr__(self, name: str) -> Called:
        return Called(self._calls, f"{self._name}.{name}".lstrip("."))

    def __call__(self, *args, **kwargs) -> Called:
        self._calls.append((self._name, args, kwargs))
        return Called(self._calls, self._name.partition(".")[0] or "run")


@pytest.mark.parametrize(
    ("name", "package", "first", "per_step", "last"),
    [
        ("WandB +tracker.project=audits", "wandb", "init", "init.log", "init.finish"),
        ("MLflow +tracker.every=2", "mlflow", "set_experiment", "log_metrics", "end_run"),
    ],
)
def test_the_trackers_of_the_guide(
    cli, tmp_path, monkeypatch, name, package, first, per_step, last
):
    code = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert code
    module = f"trackers_for_{package}"
    (tmp_path / f"{module}.py").write_text(code[1])
    calls: list = []
    stand_in = types.ModuleType(package)
    stand_in.__getattr__ = Called(calls).__getattr__  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, package, stand_in)
    outcome = cli(*f"tracker._target_={module}.{name}".split(), "hydra.run.dir=a")
    assert outcome.code == 0, outcome.err
    assert "goes on without it" not in outcome.out
    names = [called for called, *_ in calls]
    assert names[0] == first and names[-1] == last
    assert names.count(per_step) == {"wandb": 4, "mlflow": 3}[package]  # steps 2, 4; the result
