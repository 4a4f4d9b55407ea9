"""A node says only what its target understands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pytest
from torch import Tensor

from simudy.app.settings.check import check
from simudy.app.settings.instantiate import build
from simudy.errors import SimudyError
from simudy.plain import fits

HERE = __name__


@dataclass
class Rule:
    lr: float | Tensor = 0.1
    name: str = "rule"
    steps: int | None = None
    flag: bool = False
    pair: Sequence[int] = (0, 1)
    inner: Rule | None = None


class Bare:
    """Without annotations, as people write."""

    def __init__(self, shape, width=4, rate=0.1, **rest):
        self.shape, self.width = shape, width


class Fussy:
    def __init__(self, size: int = 1):
        if size > 1:
            raise RuntimeError("too\nlarge")


@pytest.mark.parametrize(
    ("value", "hint", "fit"),
    [
        (1, float, True),
        (1.5, int, False),
        (True, int, False),
        (True, float, False),
        ("abc", float, False),
        ("abc", float | Tensor, False),
        (None, float | Tensor, False),
        (None, int | None, True),
        ([1, 2], Sequence[int], True),
        ([1, "a"], list[int], False),
        (3, tuple[float, float], False),
        ({"_target_": "x"}, Rule | None, True),
        ("relu", Literal["relu", "tanh"], True),
        ("gelu", Literal["relu", "tanh"], False),
        ("anything", Rule, True),  # beyond plain data: the target decides
        ({"a": 1}, dict[str, float], True),
        (1, dict[str, float], False),
    ],
)
def test_fits(value, hint, fit):
    assert fits(value, hint) is fit


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lr": "abc"}, "inner.lr=abc: give a number"),
        ({"stepz": 1}, "inner.stepz: test_check.Rule takes no 'stepz': did you mean steps?"),
        ({"steps": 1.5}, "give a whole number or null"),
        ({"flag": "yes"}, "give true or false"),
        ({"pair": 3}, "give a list"),
        ({"inner": {"_target_": f"{HERE}.Rule", "lr": "x"}}, "inner.inner.lr=x"),
    ],
)
def test_a_wrong_field_is_named(fields, words):
    with pytest.raises(SimudyError, match=words.replace("?", r"\?")):
        check({"_target_": f"{HERE}.Rule", **fields}, "inner")


@pytest.mark.parametrize(
    "target", ["no_such_module.Rule", f"{HERE}.Nothing", "Rule", f"{HERE}.HERE", "simudy.."]
)
def test_a_target_that_is_not_there(target):
    with pytest.raises(SimudyError, match=r"give package\.module\.Name"):
        check({"_target_": target}, "inner")


def test_nulls_stand_for_the_targets_default():
    made = build(
        {
            "_target_": f"{HERE}.Rule",
            "lr": 0.5,
            "name": None,
            "inner": {"_target_": f"{HERE}.Rule"},
        },
        "inner",
    )
    assert made == Rule(lr=0.5, inner=Rule())


def test_open_fields_are_filled_where_they_are_taken():
    assert build(
        {"_target_": f"{HERE}.Bare", "shape": None}, "model", shape=[1, 2], classes=3
    ).shape == [1, 2]
    assert build({"_target_": f"{HERE}.Bare", "shape": [7]}, "model", shape=[1, 2]).shape == [7]
    assert build({"_target_": f"{HERE}.Rule"}, "model", shape=[1, 2]) == Rule()


def test_a_targets_refusal_is_one_line():
    with pytest.raises(SimudyError, match=r"model cannot be made \(RuntimeError: too large\)"):
        build({"_target_": f"{HERE}.Fussy", "size": 2}, "model")


def test_no_target():
    with pytest.raises(SimudyError, match="choose a file of conf/outer/schedule/"):
        build({"lr": 1}, "outer.schedule")
