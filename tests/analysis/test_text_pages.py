"""Texts are shown as texts: in the gallery, its page and the report, by their tokens right."""

from __future__ import annotations

import re

import pytest
from conftest import result
from PIL import Image
from test_pages import require_self_contained

from simudy.analysis.report.conclusion import LEAKS, MARGIN_OF_TOKENS, UNKNOWN, UNSEEN, conclude
from simudy.analysis.report.risk import most_at_risk
from simudy.analysis.text.text_gallery import marked, save_text_gallery, save_text_page

TOKENS = {
    "right": 0.5,
    "floor": {"heldout": 0.25, "most_frequent": 0.1},
    "true": ["old <b>", "wet dog"],
    "read": ["", "wet fig"],
    "candidates": [-1, 0],
    "each": [0.0, 5 / 7],
}


def test_what_was_read_is_marked_where_it_is_wrong():
    assert marked("wet dog", "wet fig") == "wet <mark>fi</mark>g"
    assert marked("a<b", "<<b") == "<mark>&lt;</mark>&lt;b"
    assert marked("wet dog", "") == "<i>no candidate left</i>"


def test_the_page_shows_both_texts_best_first(tmp_path):
    save_text_page(tmp_path / "a.html", TOKENS, title="a <run>", verdicts=["sure"])
    text = (tmp_path / "a.html").read_text()
    require_self_contained(text)
    assert "0.500 of tokens right; floors: held-out texts 0.250, the most frequent token" in text
    first, second = text.split("<figure>")[1:]
    assert "<pre>wet dog</pre><pre>wet <mark>fi</mark>g</pre>" in first
    assert 'class="bar above"><i style="width:71.4%"></i><b style="left:25.0%">' in first
    assert "0.714 · sure" in first and "sure" not in second
    assert "old &lt;b&gt;" in second and "no candidate left" in second and "<img" not in text


def test_the_picture_has_room_for_its_lines(tmp_path):
    heights = []
    for times in (1, 30):  # 30: several lines each
        longer = {key: [line * times for line in TOKENS[key]] for key in ("true", "read")}
        save_text_gallery(tmp_path / "a.png", TOKENS | longer, title="a run")
        with Image.open(tmp_path / "a.png") as picture:
            heights.append(picture.height)
            assert len(picture.convert("RGB").getcolors(maxcolors=2**20)) > 50
    assert heights[1] - heights[0] == 2 * 3 * 2 * 28


@pytest.mark.parametrize(
    ("right", "distance", "answer"),
    [(0.25 + MARGIN_OF_TOKENS, 0.5, LEAKS), (0.39, 0.001, UNSEEN), (0.39, 0.5, UNKNOWN)],
)
def test_a_text_is_judged_by_its_tokens_and_not_by_its_pixels(right, distance, answer):
    found = {"tokens": TOKENS | {"right": right}, "ssim_paper": 0.99, "floor": {"heldout": 0.0}}
    found |= {"recovered": 1.0, "status": "finished", "distance": distance}
    told = conclude(found, agreement=None, began=0.9)
    assert told.answer == answer and "SSIM" not in " ".join(told.why)


def test_the_texts_most_at_risk():
    rows = most_at_risk({"tokens": TOKENS, "verdicts": ["unsupported"]}, None, {})
    assert [(row["text"], round(row["right"], 3)) for row in rows] == [("wet fig", 0.714)]
    assert not most_at_risk(
        {"tokens": TOKENS | {"each": [0, 0.39]}, "verdicts": ["unsupported"]}, None, {}
    )


def test_a_run_on_texts_shows_texts(cli, tmp_path):
    words = ["data=sentences", "data.n=2", "data.length=12", "model=writer", "model.width=8"]
    words += ["dummy.images=tokens", "dummy.labels=[0,0]", "recipe.epochs=1", "gradient=reverse"]
    outcome = cli(*words, "outer.iterations=2", "hydra.run.dir=a", tiny=False)
    assert outcome.code == 0, outcome.err
    assert "tokens right: " in outcome.out and "ssim" not in outcome.out
    tokens = result(tmp_path / "a")["tokens"]
    page, report = ((tmp_path / "a" / name).read_text() for name in ("gallery.html", "report.html"))
    for true, read in zip(tokens["true"], tokens["read"], strict=True):
        pair = f"<pre>{true}</pre><pre>{marked(true, read)}</pre>"
        assert len(true) == len(read) == 12 and pair in page and pair in report
    film = report.partition("How the texts came about")[2].partition("</section>")[0]
    assert film.count("<pre>") == 2 * 2 and "<img" not in page
    assert report.count("<img") == 1  # the curves
    assert not re.search(r"SSIM \d", report) and "2 texts" in report
