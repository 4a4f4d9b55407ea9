"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import simudy

MODULES = sorted(m.name for m in pkgutil.walk_packages(simudy.__path__, "simudy."))
WITH_EXAMPLES = [
    name
    for name in MODULES
    if ">>>" in (importlib.util.find_spec(name).loader.get_source(name) or "")  # type: ignore[union-attr]
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in(name):
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0 and outcome.failed == 0


def test_there_are_some():
    assert len(WITH_EXAMPLES) > 20
