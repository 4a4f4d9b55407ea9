"""The library's messages name arguments, in Python; the app translates them into settings."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from simudy.app.settings.schema import Config
from simudy.app.translate import MENTION, in_settings
from simudy.plain import flatten

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "simudy"
# The report is written for whoever ran the command, and tells them what to type next.
LIBRARY = [
    path
    for path in sorted(SOURCE.rglob("*.py"))
    if path.relative_to(SOURCE).parts[0] != "app" and "report" not in path.parts
]


def keys() -> set[str]:
    """Every setting there is, by its dotted name, and groups with an option (``dummy=``)."""
    typed: Any = OmegaConf.to_container(OmegaConf.structured(Config))
    found = set(flatten(typed))
    for path in (ROOT / "conf").glob("*/*.yaml"):
        if "@package" not in path.read_text():
            plain = flatten(yaml.safe_load(path.read_text()) or {})
            found |= {f"{path.parent.name}.{key}" for key in plain}
    return {key for key in found if "." in key}


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """The text of every string that is no docstring; what an f-string fills in reads ``…``."""
    tree = ast.parse(path.read_text())
    told = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    inner = {
        part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and node not in told | inner:
            yield node.lineno, node.value if isinstance(node.value, str) else ""


KEYS = keys()
KEY = re.compile(
    r"(?<![\w./])(" + "|".join(map(re.escape, sorted(KEYS, key=len, reverse=True))) + r")(?![\w./])"
)
OPEN = re.compile(
    r"(?<![\w.])(inner|model|data|attack|recipe|evidence|dummy|outer|victim)\.…[=. :]"
)
GROUP = re.compile(r"(?<![\w.(])(model|inner|victim|attack|gradient|adjoint|outer|data)=[a-z]")


def test_there_are_keys_to_look_for():
    for key in ("recipe.epochs", "inner.lr", "dummy.images", "attack.grow_until", "data.root"):
        assert KEY.search(f"set {key}=3")
    assert GROUP.search("set gradient=factored") and not GROUP.search("Simudy(gradient=Mixed())")


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_no_message_of_the_library_names_a_setting(path):
    for line, text in messages(path):  # a key alone is what a person typed, as it is handed in
        found = text not in KEYS and (KEY.search(text) or OPEN.search(text) or GROUP.search(text))
        assert not found, f"{path.relative_to(ROOT)}:{line} names {found and found[0]}: {text}"


def things() -> dict[str, list[Any]]:
    """The library's classes and functions by name; a base stands for those derived from it."""
    found: dict[str, list[Any]] = {}
    for path in LIBRARY:
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        module = import_module("simudy" if name == "__init__" else f"simudy.{name}")
        for key, thing in vars(module).items():
            if inspect.isclass(thing) or inspect.isfunction(thing):
                found.setdefault(key, []).append(thing)
                for base in getattr(thing, "__mro__", ())[1:]:
                    found.setdefault(base.__name__, []).append(thing)
    sources = [thing for each in found.values() for thing in each if hasattr(thing, "load")]
    return {**found, "Source": sources}


def mentions() -> Iterator[tuple[Path, str, list[str]]]:
    for path in LIBRARY:
        for _, text in messages(path):
            for name, arguments in MENTION.findall(text.replace("'", "")):
                yield path, name, [one.partition("=")[0] for one in arguments.split(", ")]


def test_what_the_messages_mention_is_there():
    known, seen = things(), 0
    for path, name, arguments in mentions():
        if name in ("…", "norm"):
            continue
        takers = [inspect.signature(thing).parameters for thing in known.get(name, ())]
        for argument in arguments:
            seen += 1
            fits = any(argument in taken for taken in takers) or "_records" in argument
            assert fits, f"{path.name} mentions {name}({argument}=…), and there is none"
    assert seen > 40


CFG = OmegaConf.create(
    {
        "inner": {"_target_": "simudy.dynamics.optim.Clipped", "max_norm": 1.0,
                  "rule": {"_target_": "simudy.dynamics.optim.Lookahead"}},
        "data": {"_target_": "simudy.victim.data.Folder"},
        "model": {"_target_": "my.Net"},
        "attack": {"_target_": "simudy.attack.methods.kkt.KKT", "images": "pixels", "noise": None},
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("Recipe(epochs=0): give 1 or more", "recipe.epochs=0: give 1 or more"),
        ("set Recipe(epochs=…, batch_size=…)", "set recipe.epochs, recipe.batch_size"),
        ("Clipped(max_norm=-1): give 0", "inner.max_norm=-1: give 0"),
        ("Lookahead(every=0): look back", "inner.rule.every=0: look back"),
        ("Net(width=3)", "model.width=3"),
        ("set Folder(root=…), Source(n=3)", "set data.root, data.n=3"),
        ("set Method(n=…), Method(noise=0.1)", "set attack.n, dummy.noise=0.1"),
        ("KKT(images='pixels') or KKT(tv=0)", "attack.images=pixels or prior.tv=0"),
        ("Evidence(classes=None), Pretraining(new_head=False)",
         "evidence.classes=null, victim.pretrain.new_head=false"),
        ("evidence_from_weights(part='ema', mode='train')", "evidence.part=ema, victim.mode=train"),
        ("set Recipe(optimizer=AdamW), AdamW(lr=0.1)", "set inner=adamw, inner.lr=0.1"),
        ("StatelessModel(criterion=torch.nn.MSELoss)", "recipe.loss._target_=torch.nn.MSELoss"),
        ("Folder(records=[0, 5])", "data.records=[0, 5]"),
        ("call module.eval()", "set victim.mode=eval"),
        ("use gradient Mixed(), norm(dim=-1), layer '1' (BatchNorm2d)",) * 2,
    ],
)  # fmt: skip
def test_the_app_says_it_in_settings(said, typed):
    assert in_settings(said, CFG) == typed


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("recipe.order=torch recipe.shuffle=true", "recipe.order says how images come: leave "
         "recipe.shuffle out"),
        ("attack=kkt attack.images=span", "set attack.images=pixels"),
        ("dummy.images=span model=cnn", "set dummy.images=frequencies or pixels"),
        ("attack.position=0.5", "no parameter called position: set attack.position=0"),
        ("data.n=300", "data.n=300, and there are"),
        ("outer.lrs={typo:0.1}", "outer.lrs names 'typo'"),
    ],
)  # fmt: skip
def test_a_refusal_on_the_command_line_names_the_setting(cli, overrides, words):
    tiny = ("data.n=4", "recipe.epochs=3", "outer.iterations=2")
    assert words in cli(*tiny, *overrides.split(), tiny=False).error
