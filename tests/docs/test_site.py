"""The pages that are made from the program hold all that the program has."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("mkdocs", reason="the site's tools are an extra: pip install simudy[docs]")

HOOKS = Path(__file__).parents[2] / "docs" / "hooks"


def hook(name: str) -> ModuleType:
    """A script of ``docs/hooks``, which may import its neighbours, as MkDocs lets it."""
    spec = importlib.util.spec_from_file_location(f"hook_{name}", HOOKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    sys.path.insert(0, str(HOOKS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(HOOKS))
    return module


def test_every_public_name_has_its_place_in_the_api():
    import simudy
    import simudy.dynamics.optim as optim

    reference = hook("reference")
    pages = reference.pages()
    for owner in (simudy, optim):
        for name in owner.__all__:
            home = reference.path_of(getattr(owner, name))
            assert f"::: {home}\n" in pages[reference.page_of(home)], name


def test_every_key_of_the_configuration_is_among_the_settings():
    from omegaconf import OmegaConf

    from simudy.app.settings.schema import Config

    settings = hook("settings")
    page = settings.pages()["settings/index.md"]
    for key in settings.flat(OmegaConf.to_container(OmegaConf.structured(Config))):
        assert key in settings.GROUPS or f"`{key}`" in page, key


def test_every_setting_has_a_meaning():
    settings = hook("settings")
    for path, text in settings.pages().items():
        for row in re.findall(r"^\| `.*$", text, re.MULTILINE):
            assert not row.endswith("|  |"), f"{path}: {row}"


def test_every_option_of_every_group_is_among_the_settings():
    settings = hook("settings")
    pages = settings.pages()
    text = pages["settings/groups.md"] + pages["settings/experiments.md"]
    for group in (*settings.GROUPS, *settings.LISTS):
        for path in (settings.CONF / group).glob("*.yaml"):
            assert f"`{group}={path.stem}`" in text


def test_every_argument_of_a_public_name_is_documented():
    import simudy
    import simudy.dynamics.optim as optim
    import simudy.testing as testing

    documented = hook("keys").documented
    public = [getattr(owner, name) for owner in (simudy, optim) for name in owner.__all__]
    for thing in (*public, testing.check_optimizer, testing.directional):
        if not (inspect.isclass(thing) and issubclass(thing, Exception)):
            missing = inspect.signature(thing).parameters.keys() - documented(thing).keys()
            assert not missing, f"{thing.__qualname__}: {sorted(missing)}"
