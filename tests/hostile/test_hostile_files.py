"""Every file that is read back, spoiled in every way: a line, or done without it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import damage
import pytest
import yaml
from verdict import CANARY, LIMIT, TINY, Case, environment, judge, sampled

TASKS = {  # what reads which files of a run's directory
    "score": (
        *("config.yaml", "history.csv", "reconstruction.safetensors", "checkpoint"),
        *("evidence/evidence.json", "evidence/initial.safetensors", "evidence/final.safetensors"),
        *("evidence/buffers.safetensors", "secret/secret.json", "secret/images.safetensors"),
    ),
    "run": ("config.yaml", "result.json"),
    "again": ("checkpoint", "checkpoint.previous", "secret/secret.json", "evidence/evidence.json"),
    "size": ("config.yaml", "reconstruction.safetensors", "evidence/evidence.json"),
    "start": ("reconstruction.safetensors",),
}
DAMAGING = (  # files without which a task can do
    ("again", "checkpoint"),
    ("again", "checkpoint.previous"),
    ("score", "checkpoint"),
)


@cache
def template() -> Path:
    """A finished run, made once, in a process of its own."""
    root = Path(mkdtemp(prefix="simudy-hostile-"))
    command = [sys.executable, "-c", "from simudy.app.cli import main; main()", *TINY]
    options = {"cwd": root, "env": environment(), "capture_output": True, "text": True}
    done = subprocess.run([*command, "intervals.checkpoint=0"], check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return root / "run"


@pytest.fixture(scope="session", autouse=True)
def _tidy() -> Iterator[None]:
    yield
    if template.cache_info().currsize:
        shutil.rmtree(template().parent)


def argv_of(task: str) -> list[str]:
    if task in ("score", "size", "membership"):
        return [f"task={task}"]
    if task == "start":
        return ["hydra.run.dir=other", "dummy.start=run", "dummy.noise=0", "dummy.images=pixels"]
    return []


def spoil(task: str, file: str, how: damage.Damage):
    def prepare(folder: Path) -> None:
        shutil.copytree(template(), folder / "run")
        if task == "again":  # killed before it was done
            (folder / "run/result.json").unlink()
            (folder / "run/reconstruction.safetensors").unlink()
        how(folder / "run" / file)

    return prepare


def whole_files() -> Iterator[Case]:
    for task, files in TASKS.items():
        for file in files:
            kinds = {**damage.ANY_FILE, **({} if "tensors" in file else damage.TEXT)}
            if file.startswith("checkpoint"):
                kinds = {**damage.ANY_FILE}
                kinds |= {f"resealed_{k}": damage.resealed(v) for k, v in resealable().items()}
            for name, how in kinds.items():
                yield Case(f"{task}_{file}_{name}", argv_of(task), spoil(task, file, how))


def resealable() -> dict[str, damage.Damage]:
    names = ("cut0.0", "cut0.5", "flip0", "flip1", "flip2", "flip3", "noise")
    return {name: damage.ANY_FILE[name] for name in names}


# What the template's files hold, by shape; fixed here so that collecting the tests runs nothing.
RULE = ("_target_", "lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize")
HELD: dict[str, list[tuple[Any, ...]]] = {
    "evidence/evidence.json": [
        *((key,) for key in ("shape", "classes", "n", "mean", "std", "notes", "recipe")),
        *(("recipe", key) for key in ("_target_", "optimizer", "epochs", "batch_size", "schedule")),
        *(("recipe", "optimizer", key) for key in RULE),
        *((key,) for key in ("criterion", "training", "frozen", "precision")),
    ],
    "secret/secret.json": [("classes",), ("mean",), ("std",)],
    "result.json": [(key,) for key in ("status", "ssim_paper", "floor", "recovered", "n", "psnr")],
    "config.yaml": [
        *((key,) for key in ("task", "seed", "model", "data", "outer", "recipe", "evidence")),
        *(("model", key) for key in ("_target_", "width", "depth", "shape", "activation")),
        *(("outer", key) for key in ("lr", "iterations", "optimizer", "schedule", "lrs")),
        *(("dummy", key) for key in ("images", "labels", "noise", "start", "learn")),
        *(("attack", key) for key in ("_target_", "n", "inner", "recipe", "clip_above")),
        *(("gradient", "_target_"), ("adjoint", "_target_"), ("inner", "_target_")),
        *(("evidence", key) for key in ("folder", "initial", "shape", "mean")),
        *(("cache",), ("memory",), ("device",), ("distance",), ("victim", "mode")),
    ],
}
READER = {"result.json": "run", "evidence/evidence.json": "score", "secret/secret.json": "score"}


def odd_values() -> Iterator[Case]:
    for file, places in HELD.items():
        for task in ("score", "size", "run") if file == "config.yaml" else (READER[file],):
            for at in places:
                name = f"{task}_{file}_{'.'.join(map(str, at))}"
                ways = [damage.odd_value(at, value) for value in damage.ODD] + [damage.lacking(at)]
                for i, how in enumerate(ways):
                    yield Case(f"{name}_{i}", argv_of(task), spoil(task, file, how))


def every() -> list[Case]:
    cases = [*whole_files(), *odd_values()]
    random.Random(1).shuffle(cases)
    return cases


@pytest.mark.parametrize("case", sampled(every(), share=30))
def test_a_file(attempt, case):
    attempt(case)


# --- code in files

PAYLOADS: list[Any] = [
    {"_target_": "sympy.sympify", "a": f"open('{CANARY}','w')"},
    {"_target_": "torch.load", "f": "evil.pt", "weights_only": False},
    {"_target_": "numpy.load", "file": "evil.npy", "allow_pickle": True},
    {"_target_": "payload.Net"},
    {"_target_": "builtins.eval", "_args_": [f"open('{CANARY}','w')"]},
    {"_target_": "simudy.files.os.system", "command": f"touch {CANARY}"},
    {"_target_": "simudy.app.tasks.prepare.shutil.copy", "src": "evil.pt", "dst": CANARY},
    {"_target_": "simudy.files.write_atomically", "path": CANARY, "content": b"x"},
    {"_target_": "torch.nn.modules.module.torch.load", "f": "evil.pt", "weights_only": False},
    {"_target_": "hydra.utils.get_method", "path": "os.system"},
    {"_target_": "simudy.victim.models.MLP", "activation": {"_target_": "payload.Net"}},
    {"_target_": "torch.optim.Adam.payload"},
    {"_target_": ["os.system"]},
    {"_target_": {"a": "os.system"}},
    {"_target_": ""},
]


def with_payload(folder: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(folder / CANARY), "w"))

    (folder / "payload.py").write_text(
        f"open({str(folder / CANARY)!r}, 'w')\nfrom torch import nn\nNet = nn.Identity\n"
    )
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil()))
    (folder / "evil.npy").write_bytes(pickle.dumps(Evil()))


@pytest.mark.parametrize("task", ["score", "size", "membership", "run"])
@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
@pytest.mark.parametrize("key", ["model", "attack", "inner", "data"])
def test_settings_read_back_run_no_code(attempt, key, payload, task):
    if key != "model" and task != "score":
        pytest.skip("one task is as good as another here")

    def prepare(folder: Path) -> None:
        shutil.copytree(template(), folder / "run")
        with_payload(folder)
        path = folder / "run/config.yaml"
        path.write_text(yaml.dump({**yaml.safe_load(path.read_text()), key: payload}))

    attempt(Case("", argv_of(task), prepare, refused=True))


@pytest.mark.parametrize("payload", PAYLOADS[:10], ids=range(10))
def test_evidence_read_back_runs_no_code(attempt, payload):
    payload = {k: str(v) if isinstance(v, bytes) else v for k, v in payload.items()}

    def prepare(folder: Path) -> None:
        shutil.copytree(template(), folder / "run")
        with_payload(folder)
        path = folder / "run/evidence/evidence.json"
        facts = json.loads(path.read_text())
        path.write_text(json.dumps({**facts, "recipe": payload}))

    attempt(Case("", ["task=score"], prepare, refused=True))


@pytest.mark.parametrize(
    "text", ["${oc.env:SECRET_OF_TEST}", "${oc.decode:'1'}", "a ${oc.env:HOME}"]
)
@pytest.mark.parametrize("task", ["score", "size", "membership", "run"])
def test_nothing_is_resolved_in_a_file(cli, tmp_path, monkeypatch, text, task):
    monkeypatch.setenv("SECRET_OF_TEST", "hunter2")
    shutil.copytree(template(), tmp_path / "run")
    path = tmp_path / "run/config.yaml"
    path.write_text(path.read_text().replace("name: faces", f"name: {text}"))
    assert "nothing is resolved" in cli(*TINY, *argv_of(task), tiny=False).error
    assert not any(b"hunter2" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_what_the_command_names_again_is_trusted(cli, tmp_path):
    (tmp_path / "my_net_of_test.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 2))\n"
    )
    own = "model._target_=my_net_of_test.Net"
    options = [word for word in TINY if "width" not in word]
    assert cli(*options, own, tiny=False).code == 0
    refused = cli("task=score", "hydra.run.dir=run", tiny=False)
    assert "if you trust it, add model._target_=my_net_of_test.Net" in refused.error
    assert cli("task=score", "hydra.run.dir=run", own, tiny=False).code == 0


# --- sweeps


@pytest.mark.parametrize("file", ["overrides", "multirun", "result", "failed"])
@pytest.mark.parametrize("how", [*damage.ANY_FILE, *damage.TEXT])
def test_a_sweep(tmp_path, capsys, file, how):
    from simudy.app.sweep.command import main

    for name in ("a", "b"):
        (tmp_path / f"s/{name}/.hydra").mkdir(parents=True)
        (tmp_path / f"s/{name}/.hydra/overrides.yaml").write_text(f"- seed={ord(name)}\n")
        (tmp_path / f"s/{name}/result.json").write_text('{"status": "finished", "ssim": 0.5}')
    (tmp_path / "s/multirun.yaml").write_text(GRID)
    (tmp_path / "s/b/failed.txt").write_text("out of memory")
    places = {"overrides": "a/.hydra/overrides.yaml", "multirun": "multirun.yaml"}
    {**damage.ANY_FILE, **damage.TEXT}[how](
        tmp_path
        / "s"
        / places.get(file, f"{'b/failed.txt' if file == 'failed' else 'a/result.json'}")
    )
    try:
        main([str(tmp_path / "s")])
        code = 0
    except SystemExit as stopped:
        code = stopped.code
        assert isinstance(code, int)
    out, err = capsys.readouterr()
    judge(code, out, err, tmp_path, refused=False)


GRID = """hydra:
  sweeper:
    _target_: hydra._internal.BasicSweeper
    params: null
  overrides:
    task: ["seed=97,98,99"]
"""


def test_a_grid_of_a_thousand_million(tmp_path, cli, capsys):
    from simudy.app.sweep.command import main

    (tmp_path / "s/a/.hydra").mkdir(parents=True)
    (tmp_path / "s/a/.hydra/overrides.yaml").write_text("- seed=0\n")
    (tmp_path / "s/multirun.yaml").write_text(GRID.replace("97,98,99", "range(1000000000)"))
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "s")])
    assert stopped.value.code == 2 and "more than 100,000 jobs" in capsys.readouterr().err
    assert "more than 100,000 jobs" in cli("-m", "seed=range(1000000000)").error
    assert LIMIT
