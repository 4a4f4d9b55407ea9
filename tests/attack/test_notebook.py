"""What a person at a notebook sees: the evidence in three lines, progress, and the images."""

from __future__ import annotations

import base64
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import train_victim
from PIL import Image
from torch import nn

import simudy
from simudy import progress
from simudy.app.store import reconstruction
from simudy.dynamics.optim import Clipped
from simudy.errors import SimudyError
from simudy.outcome import Reconstruction


def evidence(shape=(1, 8, 8)):
    torch.manual_seed(0)
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    recipe = simudy.Recipe(Clipped(simudy.SGD(lr=0.1), max_norm=9.0), epochs=3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 2))
    return train_victim(module, recipe, images, torch.arange(4) % 2, classes=2)


def found(**told):
    how = {"outer": simudy.Outer(iterations=5, refine=0), "seed": 1}
    return simudy.reconstruct(evidence(), **{**how, **told})


def test_evidence_is_three_lines():
    first, second, third = repr(evidence()).splitlines()
    assert first == "Evidence: Sequential of 2,012 parameters, trained on 4 images of 1×8×8 in 2 " \
        "classes"  # fmt: skip
    assert second == "  run: Clipped(SGD(lr=0.1)), 3 epochs in batches of all images"
    assert re.match(r"  moved: \S+, \S+ of the initial weights; nothing else is known$", third)
    held = evidence()
    held.notes["findings"] = ["norm 'bn' trained in train mode"]
    held.recipe.schedule, held.n = [1.0, 0.5, 0.1], None
    assert "norm 'bn' trained" in repr(held) and "), scheduled, 3" in repr(held)
    assert "an unknown number of images" in repr(held)


def test_a_result_is_one_line_and_a_gallery():
    result = found()
    assert "\n" not in repr(result) and "4 images of 1×8×8, finished after 5" in repr(result)
    page = result._repr_html_()
    assert not re.search(r'(src|href)="(?!data:)', page)  # it loads nothing
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 4
    assert all(base64.b64decode(one)[:4] == b"\x89PNG" for one in pictures)
    many = Reconstruction(torch.rand(70, 1, 8, 8), torch.zeros(70), "finished", 0, 0, {}, 1, 1, [])
    assert many._repr_html_().count("<img") == 60 and "10 more" in many._repr_html_()


def test_its_images_come_back_to_pixels():
    held = evidence()
    held.mean, held.std = (0.5,), (0.25,)
    result = simudy.reconstruct(held, outer=simudy.Outer(iterations=2, refine=0))
    torch.testing.assert_close(result.pixels, result.images * 0.25 + 0.5)


def test_save_writes_pictures_and_what_a_later_run_begins_at(tmp_path):
    result = found()
    result.save(tmp_path / "kept")
    shown = []
    for path in sorted((tmp_path / "kept").glob("*.png")):
        with Image.open(path) as file:
            shown.append(np.array(file))
    assert [one.shape for one in shown] == [(8, 8, 3)] * 4
    expected = (result.pixels[2, 0].clamp(0, 1) * 255).round()
    assert shown[2][..., 0].tolist() == expected.tolist()
    tensors, facts = reconstruction.read(tmp_path / "kept/reconstruction.safetensors")
    assert torch.equal(tensors["images"], result.images) and facts["status"] == "finished"
    assert len((tmp_path / "kept/history.csv").read_text().splitlines()) == 6


def test_show_in_a_notebook_and_elsewhere(monkeypatch):
    result, shown = found(), []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture.size))
    result.show()
    assert shown == [(4 * 9 * 12, 9 * 12)]
    in_a_notebook(monkeypatch, shown.append)
    result.show()
    assert shown[1] is result
    flat = Reconstruction(torch.rand(2, 5), torch.zeros(2), "finished", 0, 0, {}, 1, 1, [])
    with pytest.raises(SimudyError, match="no pictures"):
        flat.show()
    assert "<img" not in flat._repr_html_()


def in_a_notebook(monkeypatch, display) -> None:
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    module = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", module)


def test_progress_is_seen_where_somebody_looks(capsys, monkeypatch):
    found()
    assert capsys.readouterr() == ("", "")  # not in a pipe
    found(progress=True)
    assert "5/5" in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    found()
    assert "distance=" in capsys.readouterr().err
    found(progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_notebook_is_known_by_its_kernel(monkeypatch):
    assert not progress.in_notebook()
    in_a_notebook(monkeypatch, print)
    assert progress.in_notebook()


def test_progress_changes_nothing():
    steps = []
    plain, shown = found(), found(progress=True, on_step=lambda search: steps.append(1))
    assert torch.equal(plain.images, shown.images) and len(steps) == 5
