"""Sweeps: what is run again, and ``simudy-sweep``, on job directories made up here."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, result

from simudy.app.sweep.command import main, summarise
from simudy.app.sweep.jobs import read_jobs, swept_keys

MULTIRUN = (
    "hydra:\n  sweeper:\n    _target_: hydra._internal.BasicSweeper\n    params: null\n"
    "  overrides:\n    task: {}\n"
)


def job(sweep: Path, settings: dict[str, object], **found: object) -> Path:
    root = sweep / "_".join(f"{k.replace('/', '.')}{v}" for k, v in settings.items())
    (root / ".hydra").mkdir(parents=True)
    (root / ".hydra/overrides.yaml").write_text(
        json.dumps([f"{k}={v}" for k, v in settings.items()])
    )
    if found:
        (root / "result.json").write_text(json.dumps({"status": "finished"} | found))
    return root


def rows(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def grid(tmp_path) -> Path:
    for lr, epochs in itertools.product(("0.01", "0.1"), ("4", "8")):
        score = float(lr) * int(epochs)
        job(
            tmp_path,
            {"data.n": "4", "inner.lr": lr, "recipe.epochs": epochs},
            ssim_paper=score,
            distance=1 - score,
        )
    return tmp_path


def test_a_grid_of_two_keys(grid):
    said = summarise(grid)
    assert said[0] == "4 jobs, 4 done"
    assert [line.split(" (")[0] for line in said if line.startswith("best")] == [
        "best SSIM, the paper's protocol: 0.8 with inner.lr=0.1 recipe.epochs=8",
        "best distance: 0.2 with inner.lr=0.1 recipe.epochs=8",
    ]
    assert list(rows(grid)[0])[:4] == ["job", "inner.lr", "recipe.epochs", "status"]
    assert {(r["inner.lr"], r["recipe.epochs"], r["ssim_paper"]) for r in rows(grid)} >= {
        ("0.01", "4", "0.04")
    }
    assert (grid / "plot.png").stat().st_size > 5000
    assert (grid / "index.html").read_text().count("<section>") == 4


def test_failed_unfinished_and_never_begun_jobs_are_named(grid):
    job(grid, {"data.n": "4", "inner.lr": "1", "recipe.epochs": "4"})
    failed = job(grid, {"data.n": "4", "inner.lr": "1", "recipe.epochs": "8"})
    (failed / "failed.txt").write_text("training diverged, use a lower lr")
    (grid / "multirun.yaml").write_text(
        MULTIRUN.format('["data.n=4", "inner.lr=0.1,1", "recipe.epochs=4,8,16"]')
    )
    said = "\n".join(summarise(grid))
    assert said.startswith("8 jobs, 4 done")
    assert (
        "failed: inner.lr=1 recipe.epochs=8 (" in said
        and "): training diverged, use a lower lr" in said
    )
    assert "unfinished: inner.lr=1 recipe.epochs=4 (" in said
    assert "never begun: data.n=4 inner.lr=1 recipe.epochs=16" in said
    assert "runs only what is missing" in said
    assert [r["status"] for r in rows(grid)].count("failed") == 1


def test_pruned_jobs_are_listed_and_not_compared(grid):
    stopped: dict[str, object] = {"data.n": "4", "inner.lr": "9", "recipe.epochs": "4"}
    job(grid, stopped, status="pruned", iterations=20, ssim_paper=0.99, distance=1e-9)
    said = summarise(grid)
    assert said[0] == "5 jobs, 4 done, 1 pruned"
    assert said[1].startswith("pruned: inner.lr=9 recipe.epochs=4, at iteration 20 (")
    assert not any("runs only what is missing" in line for line in said)
    best = [line for line in said if line.startswith("best")]
    assert len(best) == 2 and all("inner.lr=0.1" in line for line in best)
    assert [r["status"] for r in rows(grid)].count("pruned") == 1
    assert "pruned · " in (grid / "index.html").read_text()


@pytest.mark.parametrize(
    "settings",
    [
        [{"attack": "simudy"}, {"attack": "kkt"}],
        [{"outer.lr": "0.001"}, {"outer.lr": "1"}],
        [{"seed": "0"}, {"seed": "1"}],
        [{"prior.tv": "0"}, {}],
        [{"a": x, "b": y, "seed": z} for x in "12" for y in "345" for z in "01"],
        [{"a": "1", "b": "1"}, {"a": "2", "b": "2"}],
    ],
)
def test_lines_bars_and_maps_with_holes(tmp_path, settings):
    for i, one in enumerate(settings):
        job(
            tmp_path,
            {"data.n": "4", **one},
            ssim_paper=i / 10,
            floor={"heldout": 0.1},
            distance=float(i or "inf"),
        )
    summarise(tmp_path)
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert rows(tmp_path)[0]["floor_heldout"] == "0.1"


def test_distances_of_different_kinds_are_not_compared(tmp_path):
    for i, kind in enumerate(("cosine", "euclidean")):
        job(tmp_path, {"distance": kind}, ssim_paper=i / 10, distance=i + 1.0)
    said = summarise(tmp_path)
    assert [line.split(":")[0] for line in said if line.startswith("best")] == [
        "best SSIM, the paper's protocol"
    ]
    assert [(r["swept distance"], r["distance"]) for r in rows(tmp_path)] == [
        ("cosine", "1.0"),
        ("euclidean", "2.0"),
    ]


def test_nothing_to_draw(tmp_path):
    job(tmp_path, {"data.n": "4"})
    assert summarise(tmp_path)[0] == "1 jobs, 0 done" and not (tmp_path / "plot.png").exists()
    assert swept_keys(read_jobs(tmp_path)) == []


def test_a_directory_that_is_no_sweep(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"simudy-sweep: error: no jobs in {tmp_path}: give")


def test_twelve_jobs_stopped_half_way(cli, tmp_path, monkeypatch):
    """Killed at the seventh; then only what is missing runs, those that failed included."""
    from simudy.app.tasks import finish, run

    monkeypatch.setattr(
        finish, "_draw", lambda *args: args[-1].gallery.write_bytes(b"")
    )  # slow, and not the point

    begun, whole = [], run.run_stages

    def counted(cfg, folder):
        if len(begun) == 6 and not folder.result.exists():
            begun.append(cfg)
            raise KeyboardInterrupt
        if not folder.result.exists():
            begun.append(cfg)
        return whole(cfg, folder)

    grid = (
        "-m",
        "seed=0,1,2,3",
        "distance=cosine,euclidean,manhattan",
        "recipe.epochs=2",
        "outer.iterations=1",
    )
    grid += ("outer.lrs={latent: 0.1}",)  # written as Hydra writes it back, without the blank
    monkeypatch.setattr(run, "run_stages", counted)
    assert cli(*grid, "hydra.sweep.dir=s").code == 130
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/result.json")}
    assert len(finished) == 4 and len(begun) == 7
    said = "\n".join(summarise(tmp_path / "s"))
    assert (
        said.startswith("12 jobs, 4 done")
        and said.count("never begun") == 5
        and said.count("failed: ") == 2
    )
    again = cli(*grid, "hydra.sweep.dir=s")
    assert again.code == 2 and len(begun) == 7 + 12 - 4
    assert len(list(tmp_path.glob("s/*/result.json"))) == 8
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    said = "\n".join(summarise(tmp_path / "s"))
    assert said.count("failed: distance=manhattan seed=") + said.count("failed: seed=") == 4
    assert "12 jobs, 8 done" in said and "never begun" not in said
    page = (tmp_path / "s/index.html").read_text()
    assert page.count("gallery.png") == 8
    assert all(result(path.parent)["status"] == "finished" for path in finished)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_killed_outright_runs_what_is_missing(tmp_path, launcher):
    """SIGKILL to the sweep and its workers once three of twelve jobs are done; the same command
    then does the rest.
    """
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    options = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    said = [
        "-m",
        "seed=range(6)",
        "distance=cosine,manhattan",
        "hydra.sweep.dir=s",
        *options,
        *TINY,
    ]
    command = [sys.executable, "-c", "from simudy.app.cli import main; main()", *said]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    while len(list(tmp_path.glob("s/*/result.json"))) < 3 and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/result.json")}
    assert 3 <= len(finished) < 6
    again = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 2 and again.stdout.count("already finished") == len(finished)
    assert again.stdout.count("failed: s/") == 6 and "no distance 'manhattan'" in again.stdout
    assert len(list(tmp_path.glob("s/*/result.json"))) == 6
    assert all(path.stat().st_mtime_ns == at for path, at in finished.items())
