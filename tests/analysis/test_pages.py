"""Pages that read on a phone and in the dark: the gallery and a sweep's index."""

from __future__ import annotations

import re

import pytest
import torch

from simudy.analysis.gallery_page import save_gallery_page
from simudy.analysis.page import DARK, LIGHT
from simudy.analysis.score import score
from simudy.analysis.sweep import panels, save_index


def images(n: int, c: int = 3, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, c, side, side, generator=torch.Generator().manual_seed(seed))


def brightness(colour: str) -> float:
    """Relative luminance, by WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_text_stands_out_from_its_ground(scheme):
    assert scheme.keys() == LIGHT.keys()
    for ground in ("page", "card"):
        for text in ("ink", "soft", "accent"):
            low, high = sorted(brightness(scheme[name]) for name in (ground, text))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{text} on {ground}"


def require_self_contained(text: str) -> None:
    assert '<meta name="viewport" content="width=device-width' in text
    assert "@media screen and (prefers-color-scheme: dark)" in text
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    assert "<script" not in text


def test_pairs_stand_best_first_with_their_bars(tmp_path):
    truth = images(3)
    guesses = torch.stack([images(1, seed=5)[0], truth[2]])
    scored = score(guesses, truth, normalisation=None, heldout=images(3, seed=9))
    path = tmp_path / "gallery.html"
    verdicts = ["guessed", "<b>sure</b>"]
    save_gallery_page(
        path, truth, guesses, scored, normalisation=None, title="a <run>", verdicts=verdicts
    )
    text = path.read_text()
    require_self_contained(text)
    assert "<h1>a &lt;run&gt;</h1>" in text
    alts = re.findall(r'<img alt="([^"]*)"', text)
    assert alts[:2] == ["true image 2", "its reconstruction, SSIM 1.000"]
    assert len(alts) == 5  # three true images, two candidates
    figures = text.split("<figure>")[1:]
    assert "width:100.0%" in figures[0] and 'class="bar above"' in figures[0]
    assert "&lt;b&gt;sure&lt;/b&gt;" in figures[0] and "sure" not in "".join(figures[1:])
    sources = re.findall(r'src="(data:image/png;base64,[^"]+)"', text)
    assert sources[0] == sources[1] and len(set(sources)) == 4


def test_without_a_truth_there_is_no_score(tmp_path):
    path = tmp_path / "gallery.html"
    save_gallery_page(path, None, images(4, c=1), None, normalisation=None, title="a run")
    text = path.read_text()
    require_self_contained(text)
    assert text.count("<img") == 4 and "judge by eye" in text and 'class="bar' not in text


ROWS = [
    ({"outer.lr": lr, "seed": seed}, {"ssim_paper": 0.1 * i, "distance": 0.5 / (i + 1)})
    for i, (lr, seed) in enumerate((lr, seed) for lr in ("0.1", "0.2") for seed in ("0", "1"))
]


def test_an_index_links_to_pages_that_can_be_read(tmp_path):
    (tmp_path / "a<b").mkdir()
    for name in ("gallery.png", "gallery.html", "report.html"):
        (tmp_path / "a<b" / name).touch()
    cards = [("worse", "lr=1", "failed", {}), ("a<b", "x=<i>", "finished", {"ssim_paper": 0.5})]
    plots = panels(ROWS, ["outer.lr", "seed"])
    save_index(tmp_path / "index.html", cards, plots=plots)
    text = (tmp_path / "index.html").read_text()
    require_self_contained(text)
    assert text.index("x=&lt;i&gt;") < text.index("lr=1") and "<i>" not in text
    assert '<a href="a%3Cb/gallery.html"><img loading="lazy" src="a%3Cb/gallery.png"' in text
    assert '<a href="a%3Cb/report.html">report</a>' in text
    assert text.count("<svg") == 2 == len(plots)


def test_plots_take_the_colour_of_the_page():
    rows = [({**said, "prior.tv": said["seed"]}, found) for said, found in ROWS]
    for plot in (*panels(ROWS, ["outer.lr"]), *panels(rows, ["outer.lr", "prior.tv"])):
        assert "currentColor" in plot and "#000000" not in plot
        assert "SSIM, the paper's protocol" in plot or "distance" in plot  # text is text
        ground = re.search(r'<g id="patch_1">.*?</g>', plot, re.DOTALL)
        assert ground is None or "fill: none" in ground[0] or "opacity: 0" in ground[0]
    assert panels([], ["outer.lr"]) == []
