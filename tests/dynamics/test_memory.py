"""Peak memory, measured in processes of their own: flat in the number of steps, as promised."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

SEGMENTS = """
import json
import measure, torch
from simudy import *

model = StatelessModel(torch.nn.Linear(1000, 1000, bias=False))
images = torch.randn(2, 1000, requires_grad=True)

def run(steps):
    batches = [(images, torch.arange(2))] * steps
    how = {"adjoint": Recompute(4), "gradient": GRADIENT()}
    end = simulate(model.loss, model.params, batches, SGD(lr=0.1), **how)
    torch.autograd.grad(end["weight"].sum(), images)

run(8)
print(json.dumps([measure.peak_bytes(lambda: run(steps)) for steps in (8, 32)]))
"""

ERRORS = """
import json, sys, warnings

import torch

warnings.simplefilter("ignore")
import peers

case, steps, exact, *methods = sys.argv[1:]
right = peers.image_gradient(exact, peers.task(case, int(steps), dtype=torch.float64))
found = {}
for method in methods:
    about = peers.task(case, int(steps), dtype=torch.float64)
    found[method] = peers.error(method, about, right)
print(json.dumps(found))
"""


@pytest.fixture
def benchmarks(monkeypatch):
    """The scripts of ``benchmarks/``, importable."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' deprecations
        yield
    for name in ("measure", "peers", "memory", "long_runs", "jax_peer"):
        sys.modules.pop(name, None)


@pytest.fixture
def errors(benchmarks, monkeypatch, tmp_path):
    """``errors(methods, case, steps, exact=method)``: how far each is off, in a process of its own:
    jax closes streams and warns at forks for as long as a process lives.
    """
    import measure

    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS))
    (tmp_path / "errors.py").write_text(ERRORS)

    def call(methods, case, steps, *, exact):
        words = [case, str(steps), exact, *methods]
        return measure.in_own_process(str(tmp_path / "errors.py"), words)

    return call


@pytest.mark.parametrize("gradient", ["Reverse", "Mixed"])
def test_recompute_lets_go_of_each_segment_it_has_replayed(
    benchmarks, monkeypatch, tmp_path, gradient
):
    import measure

    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS))
    (tmp_path / "segments.py").write_text(SEGMENTS.replace("GRADIENT", gradient))
    short, long = measure.in_own_process(str(tmp_path / "segments.py"), [])
    theta, more_segments = 4 * 1000 * 1000, 6
    assert short > 4 * theta
    # A peak is some θ more or less from run to run; a segment kept would be four more each.
    assert long - short <= 1.5 * more_segments * theta


@pytest.mark.parametrize("name", ["Implicit()", "Truncated(last=8)"])
def test_the_memory_of_a_long_run_is_flat(benchmarks, name):
    import long_runs

    short, long = (long_runs.peak(name, steps) for steps in (8, 64))
    assert short > 4 * long_runs.theta_bytes()
    assert long - short <= 3 * long_runs.theta_bytes()  # θ and momentum of 56 steps are 112


def test_all_methods_of_the_comparison_compute_the_same(benchmarks, errors):
    import peers

    found = errors(peers.METHODS, "tiny", 3, exact="simudy Reverse Recompute")
    for method, error in found.items():
        assert error < 1e-10, method
    assert len(found) == 12 + len(peers.JAX)


@pytest.mark.parametrize("case", ["tiny", pytest.param("conv", marks=pytest.mark.slow)])
def test_jax_computes_what_is_timed_beside_it(benchmarks, errors, case):
    import peers

    if not peers.JAX:
        pytest.skip("jax and optax are not installed")
    for method, error in errors(peers.JAX, case, 2, exact="simudy Mixed Direct").items():
        assert error < 1e-9, method


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Direct, Mixed", "Recompute(8), Reverse", "Recompute(8), Mixed"])
def test_the_peak_at_64_steps_keeps_its_bound(benchmarks, name):
    import memory

    peaks = memory.curve(memory.CURVES[name], (8, 64))
    limit = memory.bound(name, peaks)
    assert limit is not None and peaks[64] <= limit, (peaks, limit)
