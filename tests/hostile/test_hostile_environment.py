"""Where a command runs: disks that fail, paths that are not what they should be, streams that lead
nowhere.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from verdict import LIMIT, TINY, Case, environment, judge, sampled

MAIN = "from simudy.app.entry import simudy; simudy()"


def command(*argv: str) -> list[str]:
    return [sys.executable, "-c", MAIN, *TINY, *argv]


# --- a disk that fails at the n-th file

KINDS = ("ENOSPC", "EFBIG", "EDQUOT", "EROFS", "EACCES", "EIO", "EMFILE", "ENAMETOOLONG")


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        pytest.param(kind, call, marks=() if call == i % 4 else pytest.mark.slow)
        for i, kind in enumerate(KINDS)
        for call in range(12)
    ],
)
def test_a_failing_disk(cli, tmp_path, monkeypatch, kind, call):
    """The same command goes on once it is mended."""
    from simudy.app.tasks import finish

    monkeypatch.setattr(finish, "_draw", lambda *args: args[-1].gallery.write_bytes(b""))
    calls = 0

    def failing(number):
        nonlocal calls
        calls += 1
        if calls > call:
            raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        outcome = cli(*TINY, "intervals.checkpoint=0", tiny=False)
    judge(outcome.code, outcome.out, outcome.err, tmp_path, refused=calls > call)
    assert not list(tmp_path.glob("run/**/.*.tmp")) or kind == "EIO" or outcome.code
    assert cli(*TINY, "intervals.checkpoint=0", tiny=False).code == 0


def test_a_limit_on_the_size_of_files(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    judge(*ended(tmp_path, command(), preexec_fn=limit), tmp_path, refused=True)


# --- paths

BAD_PATHS = {
    "nowhere": "nowhere/at/all",
    "file": "a_file",
    "under_file": "a_file/below",
    "directory": "a_directory",
    "fifo": "a_fifo",
    "loop": "a_loop/x",
    "null": "/dev/null",
    "zero": "/dev/zero",
    "proc": "/proc/nothing",
    "sys": "/sys/kernel",
    "long": "x" * 300,
    "user": "~nobody_of_this_name/x",
    "empty": "''",
    "root": "/",
    "umlaut": "größe",
    "number": "3",
    "nul": "'a\\0b'",
}
KEYS = {
    "hydra.run.dir": (),
    "hydra.sweep.dir": ("-m",),
    "cache": ("victim=pretrained", "data=npz", "data.path=a.npz", "data.pretrain=2"),
    "evidence.folder": (),
    "evidence.initial": ("evidence.final=a_file", "evidence.shape=[1,8,8]", "evidence.classes=2"),
    "evidence.final": ("evidence.initial=a_file", "evidence.shape=[1,8,8]", "evidence.classes=2"),
    "data.root": ("data=folder",),
    "dummy.start": ("dummy.images=pixels",),
    "name": (),
}


def lay_out(folder: Path) -> None:
    (folder / "a_file").write_text("text")
    (folder / "a_directory").mkdir()
    os.mkfifo(folder / "a_fifo")
    (folder / "a_loop").symlink_to("a_loop")


def paths() -> Iterator[Case]:
    for key, more in KEYS.items():
        for name, path in BAD_PATHS.items():
            if key in ("hydra.run.dir", "hydra.sweep.dir", "cache", "name") and name == "root":
                continue  # tests that run as root would write there
            yield Case(f"{key}_{name}", [*more, f"{key}={path}"], lay_out)


@pytest.mark.parametrize("case", sampled(list(paths()), share=20))
def test_a_path(attempt, case):
    attempt(case)


def test_a_working_directory_that_was_removed(tmp_path):
    (tmp_path / "gone").mkdir()
    script = f"cd gone && rmdir ../gone && exec {sys.executable} -c '{MAIN}'"
    code, out, err = ended(tmp_path, ["sh", "-c", script])
    judge(code, out, err, tmp_path, refused=True)
    assert "working directory was removed" in err


# --- streams

REDIRECTIONS = (
    *(">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full"),
    *(">/dev/full 2>/dev/full", "| true", "2>&1 | true", "| head -c 1", "2>&1 >/dev/null | true"),
)


@pytest.mark.slow
@pytest.mark.parametrize("argv", ["", "--help", "task=nothing", "--cfg job", "outer.lr=nan"])
@pytest.mark.parametrize("streams", REDIRECTIONS)
def test_streams(tmp_path, streams, argv):
    line = " ".join(f"'{word}'" for word in command()) + f" {argv} {streams}"
    code, out, err = ended(tmp_path, ["bash", "-c", line])
    allowed = (0, 1, 2) if "|" in streams else (0, 2)  # head's own, or ours
    assert code in allowed and "Traceback" not in out + err and "Exception" not in out + err, err
    assert "not foreseen" not in out + err
    if not argv:
        assert (tmp_path / "run/result.json").exists() == (code == 0 or "full" in streams)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "x"}]
)
@pytest.mark.parametrize("argv", [("name=größe",), ("outer.lr=größe",), ("dummy.labels=größe",)])
def test_a_terminal_without_umlauts(tmp_path, variables, argv):
    options = {**variables, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    judge(*ended(tmp_path, command(*argv), env=environment(**options)), tmp_path, refused=False)


def ended(folder: Path, argv: list[str], **options) -> tuple[int, str, str]:
    """Exit code, output and errors of a process."""
    options = {"env": environment(), **options}
    done = subprocess.run(
        argv, cwd=folder, capture_output=True, timeout=3 * LIMIT, check=False, **options
    )
    return (
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )


# --- privacy


def test_what_is_written_is_its_owners_alone(cli, tmp_path):
    before = os.umask(0o022)
    try:
        assert cli(*TINY, "cache=cache", tiny=False).code == 0
    finally:
        os.umask(before)
    for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
