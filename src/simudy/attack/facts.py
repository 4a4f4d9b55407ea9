"""``evidence.json``: what is known of a training run beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypedDict

from simudy.files import read_json
from simudy.ranges import COUNT, NOT_NEGATIVE, Length, Range

REMEDY = "give a folder that simudy wrote"

_Entries = Annotated[list[Annotated[int, COUNT]], Length(1, 8)]


class _Required(TypedDict):
    shape: _Entries
    classes: Annotated[int, COUNT]
    n: Annotated[int | None, COUNT]
    mean: Annotated[list[float], Length(1)]
    std: Annotated[list[Annotated[float, Range(1e-6)]], Length(1)]
    recipe: dict[str, Any]
    criterion: dict[str, Any] | None
    training: list[str]
    frozen: list[str]


class Facts(_Required, total=False):
    """The shape of the file."""

    notes: dict[str, Any]
    precision: str | None
    checkpoints: list[Annotated[int, COUNT]]
    hidden: dict[str, Annotated[float, NOT_NEGATIVE]]


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts in a folder of evidence, with tuples where ``Evidence`` has them.

    Raises:
        SimudyError: they are missing or damaged.
    """
    found = read_json(folder / "evidence.json", Facts, REMEDY)
    known = {*Facts.__required_keys__, *Facts.__optional_keys__}
    tuples = {key: tuple(found[key]) for key in ("shape", "mean", "std")}
    told = {key: value for key, value in found.items() if key in known}
    return {"checkpoints": [], **told, **tuples}
