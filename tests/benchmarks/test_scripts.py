"""Benchmarks that need another machine, in a size that shows here that they run."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def run(monkeypatch, script, *words):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    script.main()


def test_the_table_for_a_gpu_goes_on_where_it_stopped(benchmarks, monkeypatch, tmp_path, capsys):
    import gpu

    chosen = ("Reverse, Direct", "Mixed, Recompute(4)")
    monkeypatch.setattr(gpu, "MODES", {name: gpu.MODES[name] for name in chosen})
    out = tmp_path / "gpu.json"
    known = {chosen[0]: {"seconds": 1.5, "bytes": 2**20}, chosen[1]: {"failed": "no memory"}}
    out.write_text(json.dumps(known))
    run(monkeypatch, gpu, "--device", "cpu", "--tiny", "--out", out)
    found, shown = json.loads(out.read_text()), capsys.readouterr().out
    assert found[chosen[0]] == known[chosen[0]]  # measured already
    assert found[chosen[1]]["seconds"] > 0  # what failed is tried again
    assert "| the paper, RTX 4090 | 127 ms | 4.3 GB | 64 min |" in shown
    assert "| Reverse, Direct | 1500 ms | 1.0 MiB | – |" in shown


def test_a_row_that_fails_leaves_the_others(benchmarks, tmp_path):
    import gpu

    def fails():
        raise RuntimeError("out of\nmemory")

    found, out = {}, tmp_path / "gpu.json"
    gpu.fill(found, "Mixed, Direct", fails, out)
    gpu.fill(found, "Reverse, Direct", lambda: {"seconds": 0.5, "bytes": 0}, out)
    assert json.loads(out.read_text()) == found
    assert found["Mixed, Direct"] == {"failed": "RuntimeError: out of memory"}
    assert "RuntimeError: out of memory" in gpu.table(found) and "500 ms" in gpu.table(found)


def test_every_mode_gives_the_same_images(benchmarks, monkeypatch):
    """An outer step of each, in float64, but for those that want a compiler."""
    import gpu

    monkeypatch.setattr(gpu, "ResNet", lambda **said: torch.nn.Sequential(*small(said)))
    seen = []
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda p, **said: adam(seen.append(p[0]) or p, **said))
    torch.set_default_dtype(torch.float64)
    try:
        for name, made in gpu.MODES.items():
            if "graphs" not in name and "(default)" not in name:
                gpu.iteration(made(), device="cpu", tiny=True)()
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(seen) == 5
    for images in seen[1:]:
        torch.testing.assert_close(images, seen[0])


def small(said):
    inputs = 3 * said["shape"][1] ** 2
    return [torch.nn.Flatten(), torch.nn.Linear(inputs, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10)]


@pytest.mark.parametrize(("scores", "first"), [((0.1, 0.4, 0.5), 8.0), ((0.1, 0.2, 0.2), None)])
def test_when_the_score_was_the_papers(benchmarks, tmp_path, scores, first):
    import gpu

    lines = [f"{i},{4.0 * i},{score}" for i, score in enumerate(scores, 1)]
    text = "\n".join(["iteration,seconds,ssim_paper", "0,0.0,", *lines])
    (tmp_path / "history.csv").write_text(text + "\n")
    found = gpu.reached(tmp_path / "history.csv")
    assert found == {"to_target": first, "ssim_paper": scores[-1]}
    assert ("not reached" in gpu.table({gpu.RUN: found})) == (first is None)


def test_without_a_gpu_it_says_what_can_be_done(benchmarks, monkeypatch, capsys):
    import gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        run(monkeypatch, gpu)
    assert "--device cpu --tiny" in capsys.readouterr().err


class Counted(TorchDispatchMode):
    """Multiply-adds of every product, by torch's own formulas (its counter follows modules, which
    fails in a second derivative).
    """

    macs = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (flops := flop_registry.get(func.overloadpacket)) is not None:
            self.macs += flops(*args, **(kwargs or {}), out_val=out) / 2
        return out


@pytest.mark.parametrize("mode", ["Reverse", "Mixed"])
def test_the_count_of_a_step_is_what_a_step_computes(benchmarks, monkeypatch, mode):
    """The passes that the table counts by, beside every product of a step that runs."""
    import scale

    from simudy.victim.models import ResNet

    shape = (3, 16, 16)
    monkeypatch.setitem(scale.NETS, "small", (lambda: ResNet(shape, 10, width=8), shape))
    gradient = {"Reverse": scale.Reverse, "Mixed": scale.Mixed}[mode]()
    counts = []
    for steps in (2, 3):
        run = scale.step("small", 4, gradient, steps=steps)
        run()  # what is tried before the first step is not counted
        with Counted() as counter:
            run()
        counts.append(counter.macs)
    expected = scale.PASSES[mode] * 4 * scale.counted("small")["macs"]
    assert counts[1] - counts[0] == pytest.approx(expected, rel=0.1)


def test_a_row_of_the_curve_is_counted_and_measured(benchmarks, monkeypatch):
    import scale

    from simudy.victim.models import ResNet

    shape = (3, 16, 16)
    monkeypatch.setitem(scale.NETS, "small", (lambda: ResNet(shape, 10, width=4), shape))
    monkeypatch.setattr(scale, "in_own_process", lambda script, words: 2**20 * len(words))
    measured, counted = (scale.row("small", 4, steps=20, most=most) for most in (1e12, 0))
    assert measured[:-2] == counted[:-2] and counted[-2:] == ["–", "–"]
    assert float(measured[-2].removesuffix(" s")) >= 0 and measured[-1] == "3 MiB"


@pytest.mark.slow
def test_the_peak_of_a_step_is_measured_alone(benchmarks):
    import measure
    import scale

    few, many = (
        measure.in_own_process(scale.__file__, ["--peak-of", "ResNet-18, width 16", n])
        for n in ("2", "8")
    )
    assert many - few > 6 * scale.counted("ResNet-18, width 16")["activations"]


def test_memory_grows_with_images_and_steps_as_a_mode_keeps_them(benchmarks):
    import scale

    def kept(n, steps, gradient, adjoint):
        return scale.kept("ResNet-18, width 16", n, steps, gradient=gradient, adjoint=adjoint)

    reverse, mixed = (scale.Reverse(), scale.Direct()), (scale.Mixed(), scale.Recompute(5))
    assert kept(100, 40, *reverse) > 1.7 * kept(100, 20, *reverse)  # every step's activations
    assert kept(100, 40, *mixed) < 1.1 * kept(100, 20, *mixed)  # a θ for a segment
    assert kept(200, 20, *reverse) > 1.8 * kept(100, 20, *reverse)


def test_what_a_prior_adds_is_measured_for_each(benchmarks, monkeypatch, capsys):
    import measure
    import priors

    monkeypatch.setattr(measure, "in_own_process", lambda script, words: 3 * measure.MIB)
    run(monkeypatch, priors, "--images", 2, "--size", 8, "--repeats", 1)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [*priors.CASES]
    assert all(row.endswith("| 3.0 MiB |") for row in rows)
