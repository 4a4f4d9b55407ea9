"""Peak memory, measured in processes of their own: flat in the number of steps, as promised."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize("gradient", ["Reverse", "Mixed"])
def test_recompute_lets_go_of_each_segment_it_has_replayed(
    benchmarks, monkeypatch, tmp_path, gradient
):
    import measure

    monkeypatch.setenv("PYTHONPATH", str(benchmarks))
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Direct, Mixed", "Recompute(8), Reverse", "Recompute(8), Mixed"])
def test_the_peak_at_64_steps_keeps_its_bound(benchmarks, name):
    import memory

    peaks = memory.curve(memory.CURVES[name], (8, 64))
    limit = memory.bound(name, peaks)
    assert limit is not None and peaks[64] <= limit, (peaks, limit)
