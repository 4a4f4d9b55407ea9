"""Ranges of numbers: declared once, refused beyond, for every setting there is."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

import pytest

from simudy.plain import fits, misfit
from simudy.ranges import COUNT, DECAY, FRACTION, NOT_NEGATIVE, POSITIVE, Length, Range


class Shape(TypedDict, total=False):
    n: int


class Facts(Shape):
    shape: Annotated[list[Annotated[int, COUNT]], Length(3, 3)]


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        (POSITIVE, (1e-9, 1e9), (0, -1)),
        (NOT_NEGATIVE, (0, 1e9), (-1e-9,)),
        (FRACTION, (0, 1, 0.5), (-0.1, 1.1)),
        (DECAY, (0, 0.999), (1, -1)),
        (Range(high=3), (-1e9, 3), (3.1,)),
    ],
)
def test_ends(limits, inside, outside):
    assert all(value in limits for value in inside)
    assert not any(value in limits for value in outside)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (POSITIVE, "above 0"),
        (NOT_NEGATIVE, "0 or more"),
        (FRACTION, "from 0 to 1"),
        (DECAY, "from 0 to below 1"),
        (Range(0, 1, above=True), "above 0 and at most 1"),
        (Range(high=3), "at most 3"),
    ],
)
def test_words(limits, words):
    assert str(limits) == words


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_no_number(value):
    assert misfit(value, float, "a") == f"a={value}: give a finite number"
    assert not fits(value, float | None) and not fits([value], list[float])


@pytest.mark.parametrize("value", [2**63, -(2**63), 10**400])
def test_whole_numbers_fit_a_tensor(value):
    assert not fits(value, int) and fits(2**63 - 1, int)


def test_limits_reach_into_unions_lists_and_mappings():
    hint = Annotated[float | None, POSITIVE]
    assert fits(None, hint) and fits(1, hint) and not fits(0, hint)
    assert misfit(0, hint, "a") == "a=0: give a number, above 0 or null"
    assert misfit([1, 0], list[Annotated[int, COUNT]], "a").startswith(
        "a[1]=0: give a whole number"
    )
    assert misfit({"b": 0}, dict[str, Annotated[float, POSITIVE]], "a").startswith("a.b=0: give a")
    assert misfit([1], tuple[float, float], "a") == "a=[1]: give a list of 2"
    assert misfit("c", Literal["a", "b"], "k") == "k=c: give a or b"


def test_a_file_of_facts():
    assert misfit({"shape": [1, 8, 8], "more": None}, Facts, "") is None
    assert misfit({}, Facts, "") == "shape is not there: give a list of 3"
    assert misfit([], Facts, "facts.json") == "facts.json=[]: give a mapping"
    assert misfit({"shape": [1, 8]}, Facts, "") == "shape=[1, 8]: give a list of 3"
    assert misfit({"shape": [1, 8, 8], "n": "x"}, Facts, "") == "n=x: give a whole number"
