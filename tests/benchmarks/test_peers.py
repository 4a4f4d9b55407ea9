"""The methods that are timed beside each other compute the same."""

from __future__ import annotations

import pytest

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
def errors(benchmarks, monkeypatch, tmp_path):
    """``errors(methods, case, steps, exact=method)``: how far each is off, in a process of its own:
    jax closes streams and warns at forks for as long as a process lives.
    """
    import measure

    monkeypatch.setenv("PYTHONPATH", str(benchmarks))
    (tmp_path / "errors.py").write_text(ERRORS)

    def call(methods, case, steps, *, exact):
        words = [case, str(steps), exact, *methods]
        return measure.in_own_process(str(tmp_path / "errors.py"), words)

    return call


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
