"""Every setting × what nobody should give it: refused in a line, or taken for what it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verdict import Case, sampled

from simudy.app.settings.schema import register

NEVER = ("nan", "inf", "-inf", "1e400")  # no setting means anything by them
VALUES = ("null", "-1", "0", "1e30", f"{10**18}", f"{10**40}", "word", "''", "[1,2]", "{a: 1}")
BREADTH = (  # groups whose settings the default has not
    *(f"inner={name}" for name in ("adam", "muon", "rmsprop", "lion")),
    *(f"attack={name}" for name in ("kkt", "one_step", "surrogate", "growing", "newton")),
    *("model=cnn", "outer=released", "adjoint=recompute", "victim=pretrained", "pruner=median"),
    "data=sentences model=writer dummy.images=tokens dummy.labels=[0,0,0,0] gradient=reverse",
    "recipe.augment._target_=simudy.dynamics.augment.Flip +recipe.augment.seed=3 "
    "+recipe.augment.p=0.5",
)
WITHIN = ("attack.smooth=[{},0.03]", "attack.smooth=[0.3,{}]")  # numbers of a list
FEWER = ("nan", "-1", "0", "1e30", "word", "[1,2]")
WORDS = ("evidence.part",)  # a name within a file: any word
ELSEWHERE = ("hydra", "cache", "name")  # Hydra's own, and paths: see test_hostile_environment.py


def leaves(node: Any, key: str = "") -> Iterator[str]:
    """The keys of all settings, mappings included."""
    if key:
        yield key
    if isinstance(node, dict):
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}".lstrip("."))


def settings(*overrides: str) -> list[str]:
    register()
    with initialize_config_module("simudy.conf", version_base="1.3"):
        cfg = OmegaConf.to_container(compose("config", list(overrides)), resolve=False)
    return [key for key in leaves(cfg) if key.split(".")[0] not in ELSEWHERE]


def cases() -> list[Case]:
    default = settings()
    found = [
        Case(f"{key}={value}", [f"{key}={value}"], refused=value in NEVER and key not in WORDS)
        for key in default
        for value in (*NEVER, *VALUES)
    ]
    for group in BREADTH:
        own = [key for key in settings(*group.split()) if key not in default]
        found += [
            Case(
                f"{group}_{key}={value}", [*group.split(), f"{key}={value}"], refused=value in NEVER
            )
            for key in own
            for value in FEWER
        ]
    found += [
        Case(place.format(value), [place.format(value)], refused=value in NEVER)
        for place in WITHIN
        for value in FEWER
    ]
    found += [Case(f"~{key}", [f"~{key}"]) for key in default if "." not in key]
    return found


@pytest.mark.parametrize("case", sampled(cases(), share=40))
def test_a_setting(attempt, case):
    attempt(case, without=["data.size"] if "data=sentences" in case.argv else [])


@pytest.mark.parametrize("group", [group for group in BREADTH if " " in group])
def test_what_is_varied_runs_as_it_stands(attempt, tmp_path, group):
    """Else all of its cases would be refused, whatever they say."""
    attempt(Case(group, group.split()), without=["data.size"] if "sentences" in group else [])
    assert (tmp_path / "run/result.json").exists()
