"""The pictures hold everything, depend on nothing and appear whole."""

import json
import re

import pytest
import torch
from PIL import Image

from simudy.analysis.gallery import enlarge, save_gallery
from simudy.analysis.report.conclusion import (
    FITTED,
    LEAKS,
    MARGIN,
    NOT_PROOF,
    UNKNOWN,
    UNSEEN,
    conclude,
)
from simudy.analysis.report.document import content_of, save_report
from simudy.analysis.score import Score, score
from simudy.plain import flatten


def images(n: int, c: int = 3, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, c, side, side, generator=torch.Generator().manual_seed(seed))


def scored(truth: torch.Tensor, reconstruction: torch.Tensor) -> Score:
    return score(
        reconstruction,
        truth,
        normalisation=None,
        heldout=images(len(truth), truth.shape[1], seed=9),
    )


def draw(path, truth, reconstruction, title="a run"):
    result = None if truth is None else scored(truth, reconstruction)
    save_gallery(path, truth, reconstruction, result, normalisation=None, title=title)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.convert("RGB")


def shades(picture) -> int:
    return len(picture.getcolors(maxcolors=2**20))


@pytest.mark.parametrize(
    ("n", "c", "rows"), [(1, 3, 1), (3, 1, 1), (20, 3, 2), (21, 1, 3), (120, 3, 12)]
)
def test_a_gallery_has_the_size_its_pairs_need(tmp_path, n, c, rows):
    picture = draw(tmp_path / "gallery.png", images(n, c), images(n, c, seed=1))
    tile = 8 * round((320 if n <= 2 else 240 if n <= 5 else 160) / 8)
    assert picture.height == 172 + rows * (2 * (tile + 4) + 60) + 56
    assert picture.width == max(1140, 2 * 48 + 34 + -(-n // rows) * (tile + 14) - 14)
    assert not list(tmp_path.glob(".*"))  # no draft is left behind


def test_images_are_enlarged_without_resampling(tmp_path):
    truth = images(1)
    picture = draw(tmp_path / "gallery.png", truth, truth)
    for row, column in ((0, 0), (3, 5), (7, 7)):
        expected = tuple((truth[0, :, row, column] * 255).round().int().tolist())
        assert picture.getpixel((48 + 34 + 40 * column + 20, 172 + 40 * row + 20)) == expected


def test_pairs_stand_best_first(tmp_path):
    truth = images(3)
    picture = draw(tmp_path / "gallery.png", truth, torch.stack([images(1, seed=5)[0], truth[2]]))
    best = tuple((truth[2, :, 0, 0] * 255).round().int().tolist())
    assert picture.getpixel((48 + 34 + 5, 172 + 5)) == best


def test_a_gallery_without_a_secret(tmp_path):
    assert shades(draw(tmp_path / "gallery.png", None, images(12))) > 100


def test_large_images_are_averaged_down_and_odd_channels_shown_grey(tmp_path):
    assert enlarge(torch.zeros(1, 640, 320, 3).byte().numpy(), count=1).shape == (1, 320, 160, 3)
    assert shades(draw(tmp_path / "gallery.png", images(2, c=4), images(2, c=4))) > 10


HISTORY = [
    {"iteration": i, "objective": 0.9**i, "distance": -1e-9 if i == 9 else 0.9**i}
    for i in range(10)
]
HISTORY[5]["ssim_paper"] = 0.3


def result_of(score: Score | None = None, *, distance=1e-3, status="finished", **more):
    figures = score.as_dict() if score else {}
    return {"status": status, "distance": distance, "seconds": 12.5, **figures, **more}


def report(path, *, secret=True, history=HISTORY, title="a run", told=None, **more):
    truth, reconstruction = images(4), images(4, seed=1)
    found = scored(truth, reconstruction) if secret else None
    save_report(
        path,
        title=title,
        settings={"data": {"name": "<b>faces</b>", "n": 4}, "seed": 12345, "outer": {"lr": 0.1}},
        result=result_of(found, verdicts=["unsupported"] * 4, **more),
        history=history,
        truth=truth if secret else None,
        reconstruction=reconstruction,
        filmstrip=[(0, images(2)), (500, images(2, seed=1))],
        normalisation=None,
        score=found,
        told=told,
    )
    return path.read_text(encoding="utf-8")


TOLD = {
    "knowledge": {"rule": "SGD(lr=0.1)", "epochs": 3},
    "assumed": ["Typed: <i>4 images</i>."],
    "read": ["the files prove <u>this</u>"],
    "attacks": [{"method": "Simudy", "seed": 0}, {"independent search": "b"}],
    "compute": {"seconds": 12.5},
    "membership": {"below_1_percent": 3, "expected_by_chance": 0.1, "candidates": [{}] * 9,
                   "auc": 0.75, "power": "full"},
    "diagnosis": {
        "lines": [{"name": "M_lin", "figure": "0.44", "meaning": "far from linear"}],
        "changes": ["fewer epochs"], "not_shown": "nothing is safe",
    },
}  # fmt: skip


def test_a_report_holds_every_part_and_loads_nothing(tmp_path):
    text = report(tmp_path / "report.html", told=TOLD)
    parts = (
        *("Images most at risk", "What to do", "Assumed", "Read from the files"),
        *("The three verdicts on an image", "What the attacker knew", "Attacks tried", "Compute"),
        *("Diagnosis", "To keep in mind", "Against the floor", "Reconstructions", "Curves"),
        *("How the images came about", "Result", "Settings"),
    )
    places = [text.index(f"<h2>{part}</h2>") for part in parts]
    assert places == sorted(places)
    assert set(re.findall(r'(?:src|srcset)="([^,]*),', text)) == {"data:image/png;base64"}
    text = re.sub(r'base64,[^"]*', "", text)  # four letters may turn up in an image by chance
    assert (
        "http" not in text and "url(" not in text and "<script" not in text and "<link" not in text
    )
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    assert text.count('class="pixels"') == 4 and text.count("<figcaption>") == 2 + 4
    assert "<td>12345</td>" in text and "outer.lr" in text
    assert "3 of 9" in text and "by chance 0.1; AUC 0.750" in text and "far from linear" in text
    assert "<li>fewer epochs</li>" in text and "nothing is safe" in text


def test_the_page_and_the_json_say_the_same(tmp_path):
    text = report(tmp_path / "report.html", told=TOLD)
    content = json.loads((tmp_path / "report.json").read_text())
    told = [*content["why"], *content["advice"], *content["cautions"], content["answer"]]
    figures = [tile[key] for tile in content["figures"] for key in ("value", "name", "note")]
    words = text.replace("&gt;", ">").replace("&#34;", '"')
    assert all(entry in words for entry in (*told, *figures))
    assert content["result"]["distance"] == 1e-3 and content["settings"]["seed"] == 12345


def test_a_report_escapes_what_a_person_typed(tmp_path):
    text = report(tmp_path / "report.html", title="<script>alert(1)</script> $x_1$", told=TOLD)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not [tag for tag in ("<script>", "<b>faces</b>", "<i>4", "<u>") if tag in text]


def test_a_report_without_a_secret_gives_no_score(tmp_path):
    text = report(tmp_path / "report.html", secret=False)
    assert "there are no true images" in text and UNKNOWN in text
    assert "Against the floor" not in text


def test_a_history_as_a_csv_reader_yields_it(tmp_path):
    rows = [{key: str(value) for key, value in row.items()} | {"ssim_paper": ""} for row in HISTORY]
    assert "<h2>Curves</h2>" in report(tmp_path / "a.html", history=rows)
    assert "<h2>Curves</h2>" not in report(tmp_path / "b.html", history=[])


FLOOR = {"heldout": 0.1, "noise": 0.0, "class_mean": None}
CERTIFIED = {"verdict_counts": {"certified": 1, "consistent": 0, "unsupported": 3}}
BY_CHANCE = {"false_rate": 0.05, "p_values": [0.06, 0.3, 0.9, 1.0]}
BEYOND = {"false_rate": 0.05, "p_values": [0.05, 0.3, 0.9, 1.0]}


@pytest.mark.parametrize(
    ("expected", "figures", "agreement"),
    [
        (LEAKS, {"ssim_paper": 0.1 + MARGIN, "floor": FLOOR, "distance": 0.5}, None),
        (LEAKS, {"distance": 0.5, **CERTIFIED}, None),
        (UNSEEN, {"ssim_paper": 0.09 + MARGIN, "floor": FLOOR}, None),
        (UNKNOWN, {"ssim_paper": 0.09 + MARGIN, "floor": FLOOR, "distance": 2 * FITTED}, None),
        (UNKNOWN, {"ssim_paper": 0.1, "floor": FLOOR, "status": "interrupted"}, None),
        (UNKNOWN, {"distance": None}, None),
        (UNKNOWN, {}, None),
        (UNKNOWN, {}, BEYOND),  # be it consistent or not
        (UNSEEN, {}, BY_CHANCE),
    ],
)
def test_the_answer_keeps_to_its_rule(expected, figures, agreement):
    found = conclude(result_of(**figures), agreement=agreement)
    assert found.answer == expected and found.why and found.advice
    assert (NOT_PROOF in found.why) == (expected != LEAKS)


MEMBERS = {"candidates": [{"member": True, "p": 0.004}] * 5 + [{"member": False, "p": 0.5}] * 40}
SIGN = {"candidates": [{"member": None, "p": 0.004}] * 5, "below_1_percent": 5}
NO_SIGN = {"candidates": [{"member": True, "p": 0.4}] * 45, "below_1_percent": 0}
DETERMINED = {"images": [{"dimensions": 3.0, "bits": 9.0}, {"dimensions": 0.0, "bits": 0.0}]}
NOTHING = {"images": [{"dimensions": 0.0, "bits": 0.1}]}


@pytest.mark.parametrize(
    ("expected", "others", "reason"),
    [
        (LEAKS, {"membership": MEMBERS}, "5 of 5 members"),
        (UNKNOWN, {"membership": SIGN}, "5 of 5 candidates"),
        (UNKNOWN, {"exposure": DETERMINED}, "part of 1 images"),
        (UNKNOWN, {"began": 2e-3}, "so did the noise"),
        (UNKNOWN, {"recovered": 0.25}, "25 % of the images"),
        (UNSEEN, {"membership": NO_SIGN, "exposure": NOTHING, "began": 0.8}, "yet SSIM"),
    ],
)
def test_no_all_clear_beside_what_speaks_against_it(expected, others, reason):
    others = dict(others)
    shown = {"ssim_paper": 0.1, "floor": FLOOR, "recovered": others.pop("recovered", 0.0)}
    found = conclude(result_of(**shown), agreement=None, **others)
    assert found.answer == expected and reason in " ".join(found.why)


def test_a_weak_hint_does_not_hide_why_a_search_says_nothing():
    found = conclude(result_of(distance=0.5, recovered=0.1), agreement=None, exposure=DETERMINED)
    assert found.answer == UNKNOWN and "did not fit" in found.why[0]


@pytest.mark.parametrize(
    ("rows", "value"),
    [
        ([{"image": 3, "share": 0.5, "dimensions": 96.0, "psnr_bound": 40.2, "bits": 90.0}],
         "1 of 1"),
        ([{"image": 3, "share": 0.0, "dimensions": 0.0, "psnr_bound": 12.1, "bits": 0.0}],
         "nothing"),
        ([{"image": 3, "share": 1.0, "dimensions": 192.0, "psnr_bound": 90.0, "bits": 9e3,
           "bias": 0.7}], "cannot say"),
        ([], "not yet"),
    ],
)  # fmt: skip
def test_the_tile_of_exposure_says_what_its_file_says(rows, value):
    exposure = {"images": rows, "psnr_floor": 12.04, "status": "running"}
    told = content_of("a run", result_of(), None, {"exposure": exposure})["figures"]
    tile = next(t for t in told if t["name"] == "exposure")
    assert tile["value"] == value
    assert value == "not yet" or value == "cannot say" or "so far" in tile["note"]


def test_proved_images_are_most_at_risk_and_doubtful_ones_are_not_listed():
    truth = images(3)
    found = scored(truth, torch.stack([truth[0], truth[1], images(1, seed=7)[0]]))
    verdicts = ["unsupported", "consistent", "unsupported"]
    told = {"names": ["ann", "bob", "cid"]}
    rows = content_of("a run", result_of(found, verdicts=verdicts), found, told)["at_risk"]
    assert [(row["image"], row["name"], row["verdict"]) for row in rows] == [
        (1, "bob", "consistent"),
        (0, "ann", "unsupported"),  # for its score
    ]


def test_flatten_keeps_order_and_empty_mappings():
    assert flatten({"b": {"c": {"d": 1}}, "a": {}}) == {"b.c.d": 1, "a": {}}
