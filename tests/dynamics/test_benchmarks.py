"""Benchmarks that need another machine, in a size that shows here that they run."""

from __future__ import annotations

import json
import sys

import pytest
import torch


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
