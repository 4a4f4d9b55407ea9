"""The paper's row beside ours, by gradient mode: ``python benchmarks/gpu.py``, ten minutes of GPU.

ResNet-18, 20 images of 32×32, 8 simulated steps, as the paper's. Each row is one way to
differentiate the run: seconds and peak memory of an outer iteration. With ``--root`` (the folder of
CIFAR-10) one reconstruction follows, timed until its SSIM is the paper's. Finished rows are kept in
a JSON file and not measured again; a row that failed is.

python benchmarks/gpu.py [--device cuda] [--root DATA] [--minutes 10] [--out gpu.json] [--tiny]
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import MIB, markdown, peak_bytes, side_by_side

from simudy import SGD, Direct, Mixed, Recompute, Reverse, StatelessModel, Traced, cosine, simulate
from simudy import total_variation as tv
from simudy.dynamics import tree
from simudy.victim.models import ResNet

# Tian et al. 2025, CIFAR-10, n=20, one RTX 4090: 4.3 GB, 1.06 h for 30,000 iterations.
TARGET, PAPER = 0.314, ["the paper, RTX 4090", "127 ms", "4.3 GB", "64 min"]
MODES: dict[str, Callable[[], dict[str, Any]]] = {
    "Reverse, Direct": lambda: {"gradient": Reverse()},
    "Reverse, Recompute(4)": lambda: {"gradient": Reverse(), "adjoint": Recompute(4)},
    "Mixed, Direct": lambda: {"gradient": Mixed()},
    "Mixed, Recompute(4)": lambda: {"gradient": Mixed(), "adjoint": Recompute(4)},
    "Traced, Direct": lambda: {"gradient": Traced()},
    "Traced(default), Direct": lambda: {"gradient": Traced(compile="default")},
    "Traced(CUDA graphs), Direct": lambda: {"gradient": Traced(compile="reduce-overhead")},
}
RUN = "one reconstruction"


def iteration(how: dict[str, Any], *, device: str, tiny: bool) -> Callable[[], None]:
    """An outer iteration of the paper's shape: simulate, compare, differentiate, step."""
    torch.manual_seed(0)
    size, n, steps, width = (8, 2, 2, 2) if tiny else (32, 20, 8, 64)
    net = ResNet(shape=(3, size, size), classes=10, width=width).eval()
    model = StatelessModel(net.to(device))
    images = (0.5 * torch.randn(n, 3, size, size, device=device)).requires_grad_()
    labels = torch.arange(n, device=device) % 10
    real = {k: torch.randn_like(p) for k, p in model.params.items()}
    outer = torch.optim.Adam([images], lr=0.01, betas=(0.8, 0.9))
    how = {"adjoint": Direct(), **how}

    def run() -> None:
        batches = [(images, labels)] * steps
        end = simulate(model.loss, model.params, batches, SGD(lr=0.01), **how)
        distance = cosine(tree.sub(end, model.params), real)
        outer.zero_grad()
        (distance + 2e-3 * tv(images)).backward()
        outer.step()

    return run


def measured(name: str, *, device: str, tiny: bool) -> dict[str, float]:
    """Seconds, and bytes on top of the network and its images, once all is warm."""
    run = iteration(MODES[name](), device=device, tiny=tiny)
    seconds = side_by_side({name: run}, repeats=2 if tiny else 20, device=device)[name]
    return {"seconds": seconds, "bytes": peak_bytes(run, device=device)}


def reconstructed(root: str, minutes: float, folder: Path) -> dict[str, float | None]:
    """The experiment of this row, for so long; when its SSIM was the paper's, and its last one."""
    said = ["experiment=cifar10_resnet18_n20", f"data.root={root}", f"hydra.run.dir={folder}"]
    command = [sys.executable, "-m", "simudy", *said, "gradient=traced", "intervals.snapshots=100"]
    running = subprocess.Popen(command)
    try:
        running.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGINT)  # it scores what it has
        running.wait()
    return reached(folder / "history.csv")


def reached(history: Path) -> dict[str, float | None]:
    """When the score in a run's history was first the paper's, and what it was last."""
    with history.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("ssim_paper")]
    scores = [(float(row["seconds"]), float(row["ssim_paper"])) for row in rows]
    first = next((seconds for seconds, score in scores if score >= TARGET), None)
    return {"to_target": first, "ssim_paper": scores[-1][1] if scores else None}


def table(found: dict[str, Any]) -> str:
    """The rows so far."""
    rows = [PAPER]
    for name in MODES:
        if "seconds" in (row := found.get(name, {})):
            rows.append([name, f"{1e3 * row['seconds']:.0f} ms", f"{row['bytes'] / MIB:.1f} MiB"])
        elif "failed" in row:
            rows.append([name, row["failed"][:60], "–"])
        rows[-1] += ["–"] * (4 - len(rows[-1]))
    if "ssim_paper" in (row := found.get(RUN, {})):
        when = row["to_target"]
        last = f"not reached, SSIM {row['ssim_paper'] or 0:.3f}"
        rows.append([RUN, "–", "–", last if when is None else f"{when / 60:.1f} min"])
    return markdown(["mode", "iteration", "memory", f"to SSIM {TARGET}"], rows)


def fill(found: dict[str, Any], name: str, work: Callable[[], Any], out: Path) -> None:
    """Do what is not done, and keep it at once."""
    if name in found and "failed" not in found[name]:
        return
    begun = time.perf_counter()
    try:
        found[name] = work()
    except Exception as error:  # no memory, no compiler: the other rows go on
        found[name] = {"failed": " ".join(f"{type(error).__name__}: {error}".split())}
    print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
    out.write_text(json.dumps(found, indent=2) + "\n")


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told.add_argument("--device", default="cuda")
    told.add_argument("--root", help="folder of CIFAR-10: adds a reconstruction")
    told.add_argument("--minutes", type=float, default=10.0, help="for the reconstruction")
    told.add_argument("--out", type=Path, default=Path("gpu.json"))
    told.add_argument("--tiny", action="store_true", help="seconds, on a CPU too; no compiler")
    said = told.parse_args()
    if said.device == "cuda" and not torch.cuda.is_available():
        told.error("there is no GPU here: --device cpu --tiny shows that the script works")
    found = json.loads(said.out.read_text()) if said.out.exists() else {}
    for name in MODES:
        if not ((said.tiny and "(default)" in name) or (said.tiny and "graphs" in name)):
            fill(found, name, partial(measured, name, device=said.device, tiny=said.tiny), said.out)
    if said.root:
        folder = said.out.with_name("gpu-run").absolute()
        fill(found, RUN, partial(reconstructed, said.root, said.minutes, folder), said.out)
    device = torch.cuda.get_device_name() if said.device == "cuda" else said.device
    print(f"\n{device}, torch {torch.__version__}\n\n{table(found)}")


if __name__ == "__main__":
    main()
