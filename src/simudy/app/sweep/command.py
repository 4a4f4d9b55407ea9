"""The command ``simudy-sweep DIR``: a sweep as a table, a plot and an index of galleries."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from simudy.analysis.sweep import panels, save_index, save_plot, without_yardsticks
from simudy.app import streams
from simudy.app.complaint import debugging, one_line
from simudy.app.signals import INTERRUPTED
from simudy.app.store.run_directory import FINISHED, PRUNED
from simudy.app.sweep.jobs import Job, never_begun, read_jobs, swept_keys, table
from simudy.files import private_files, user_path, write_atomically


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script. Exit codes: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        "simudy-sweep", description="A sweep as summary.csv, plot.png and index.html."
    )
    parser.add_argument(
        "directory", type=Path, help="of a sweep: what simudy -m printed, or hydra.sweep.dir"
    )
    streams.make_streams_safe()
    directory = parser.parse_args(argv).directory
    try:
        with private_files():
            for line in summarise(user_path(directory)):
                print(line)
        unsaid = streams.flush()
    except BrokenPipeError:  # whoever read has had enough
        streams.flush()
        return
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if debugging():
            raise
        unsaid = error
    if unsaid is not None:
        streams.say(f"simudy-sweep: error: {one_line(unsaid)}")
        sys.exit(2)


def summarise(sweep: Path) -> list[str]:
    """Write the three files, and return what a person should know."""
    jobs = read_jobs(sweep)
    keys, never = swept_keys(jobs), never_begun(sweep, jobs)
    done = [job for job in jobs if job.status in FINISHED]
    write_atomically(sweep / "summary.csv", table(jobs, keys).encode())
    rows = [({key: job.settings.get(key, "") for key in keys}, job.result) for job in done]
    plotted = save_plot(sweep / "plot.png", rows, keys)
    if not plotted:  # of an earlier call, when there was more
        (sweep / "plot.png").unlink(missing_ok=True)
    cards = [(job.root.name, _words(job, keys), job.status, job.result) for job in jobs]
    save_index(sweep / "index.html", cards, plots=panels(rows, keys))
    files = ["summary.csv", *(["plot.png"] if plotted else []), "index.html"]
    return [
        *_lacking(jobs, keys, never),
        *_best(done, keys),
        *(f"{sweep / name}" for name in files),
    ]


def _lacking(jobs: list[Job], keys: list[str], never: list[dict[str, str]]) -> list[str]:
    lines = [
        f"failed: {_words(job, keys)} ({job.root}): {job.reason}"
        for job in jobs
        if job.status == "failed"
    ]
    lines += [
        f"unfinished: {_words(job, keys)} ({job.root})"
        for job in jobs
        if job.status == "unfinished"
    ]
    lines += [
        f"never begun: {' '.join(f'{k}={v}' for k, v in settings.items())}" for settings in never
    ]
    missing = sum(not line.startswith("failed") for line in lines)
    again = ["the same command again runs only what is missing"] if missing else []
    pruned = _pruned(jobs, keys)
    done = len(jobs) + len(never) - len(lines) - len(pruned)
    stopped = f", {len(pruned)} pruned" if pruned else ""
    return [f"{len(jobs) + len(never)} jobs, {done} done{stopped}", *pruned, *lines, *again]


def _pruned(jobs: list[Job], keys: list[str]) -> list[str]:
    """A line for each job that was stopped early, whose figures are not compared."""
    return [
        f"pruned: {_words(job, keys)}, at iteration {job.result.get('iterations')} ({job.root})"
        for job in jobs
        if job.status == PRUNED
    ]


def _best(done: list[Job], keys: list[str]) -> list[str]:
    """One line per figure: the score, which needs the secret, and the distance, which an attacker
    sees too.
    """
    lines = []
    for name, (label, better) in without_yardsticks(keys).items():
        having = [
            job
            for job in done
            if math.isfinite(job.result[name] if job.result.get(name) is not None else math.nan)
        ]
        if having:
            best = better(having, key=lambda job: job.result[name])
            lines.append(
                f"best {label}: {best.result[name]:.4g} with {_words(best, keys)} ({best.root})"
            )
    return lines


def _words(job: Job, keys: list[str]) -> str:
    return (
        " ".join(f"{key}={job.settings[key]}" for key in keys if key in job.settings)
        or "no swept key"
    )
