"""``simudy --help``, with a sentence for every key, and ``simudy --version``."""

from __future__ import annotations

import argparse
import dataclasses
import platform
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from simudy.app.settings import meaning
from simudy.app.settings.schema import Config, register, settings_of
from simudy.plain import flatten

HEADER = """\
simudy reconstructs training images from a network's weights, by simulating its training run and
differentiating through it.

simudy
    20 bundled faces out of an MLP, scored, in about a minute
simudy experiment=cifar10_mlp_n20 data.root=…
    an experiment of the paper
simudy evidence.initial=a.pt evidence.final=b.pt model._target_=my.Net evidence.shape=[3,32,32] …
    an audit of your own model
simudy -m inner.lr=0.01,0.02
    a sweep; finished jobs are skipped when it is launched again
simudy task=victim | reconstruct | score
    one stage; hydra.run.dir=… names the directory"""
FOOTER = """\
The same command with the same hydra.run.dir goes on where it was stopped. A path with spaces goes
in quotes, as your shell has it. Exit codes: 0 done, 2 bad input, 130 interrupted.
simudy --help inner=adam   the keys of another option; in full on the site under Settings
simudy --hydra-help        Hydra's own flags
Tab completion: eval "$(simudy -sc install=bash)"
"""
COLUMNS, LEFT = 100, 30
_MADE = "the class or function that makes it"


def version() -> str:
    """What a report of a defect wants to know."""
    return f"simudy {version_of('simudy')}, torch {version_of('torch')}, Python " + (
        platform.python_version()
    )


def usage(argv: Sequence[str]) -> str:
    """The page that ``--help`` shows, for the options that ``argv`` chooses.

    Raises:
        HydraException: ``argv`` cannot be composed.
    """
    cfg = _composed(argv)
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    values = _values(cfg)
    keys = "\n".join(_lines(values, meanings(values, choices)))  # type: ignore[arg-type]
    parts = (HEADER, "== Groups (group=option) ==", _groups(), "== Settings (key=value) ==", keys)
    return "\n\n".join([*parts, FOOTER])


def meanings(values: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, str]:
    """A sentence for every key.

    Args:
        values: by dotted key.
        choices: the option chosen of each group.
    """
    said = meaning.comments(meaning.conf() / "config.yaml")
    for path in _files(choices):
        said |= {f"{path.parent.name}.{k}": v for k, v in meaning.comments(path).items()}
        if f"{path.parent.name}._target_" in values and meaning.head(path):
            said[f"{path.parent.name}._target_"] = meaning.head(path)
    known = _of_schema(Config)
    return {
        key: said.get(key)
        or said.get(key.removesuffix("._target_"))
        or _of_target(key, values)
        or known.get(key)
        or (meaning.GUESS if key.startswith(("attack.inner.", "attack.recipe.")) else _MADE)
        for key in values
    }


def _composed(argv: Sequence[str]) -> DictConfig:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    known, rest = parser.parse_known_args(list(argv))
    overrides = [word for word in rest if not word.startswith("-")]
    if known.config_dir:
        overrides.append(f"hydra.searchpath=['file://{Path(known.config_dir).absolute()}']")
    register()
    with initialize_config_module("simudy.conf", version_base="1.3"):
        return compose("config", overrides, return_hydra_config=True)


def _values(cfg: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    return flatten({key: value for key, value in plain.items() if key != "hydra"})


def _groups() -> str:
    lines = []
    for folder in sorted(path for path in meaning.conf().iterdir() if path.is_dir()):
        names = sorted(path.stem for path in folder.glob("*.yaml"))
        if names:
            listed = f"{folder.name}: {', '.join(names)}"
            lines += textwrap.wrap(listed, COLUMNS, subsequent_indent="    ")
    return "\n".join(lines)


def _files(choices: Mapping[str, str]) -> Iterator[Path]:
    """The files that fill the chosen options, from the general to the special."""
    for group, option in choices.items():
        path = meaning.conf() / group / f"{option}.yaml"
        if "/" not in group and path.exists() and group not in ("experiment", "sweep", "debug"):
            if base := meaning.based_on(path):
                yield path.with_name(f"{base}.yaml")
            yield path


def _of_target(key: str, values: Mapping[str, Any]) -> str:
    """What the nearest ``_target_`` says of a key beside it."""
    node, _, name = key.rpartition(".")
    target = str(values.get(f"{node}._target_") or "")
    if name == "_target_" or not target:
        return ""
    return meaning.documented(target).get(name) or f"see {target}"


def _of_schema(owner: type, section: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    explained = meaning.documented(meaning.EXPLAINED.get(section.rstrip("."), ""))
    found |= {f"{section}{name}": words for name, words in explained.items()}
    found |= {f"{section}{k}": v for k, v in meaning.source_comments(owner).items()}
    for name, hint in settings_of(owner).items():
        if dataclasses.is_dataclass(hint):
            found |= _of_schema(hint, f"{section}{name}.")  # type: ignore[arg-type]
    return found


def _lines(values: Mapping[str, Any], said: Mapping[str, str]) -> Iterator[str]:
    above = ""
    for key, value in values.items():
        section = key.partition(".")[0] if "." in key else ""
        if section != above:
            yield ""
        above = section
        yield from _entry(f"{key}={_typed(value)}", said[key].replace("``", "`"))


def _entry(left: str, sentence: str) -> list[str]:
    """A key and its default on the left, what it means on the right, or below where it is long."""
    words = textwrap.wrap(sentence, COLUMNS - LEFT - 2, break_on_hyphens=False)
    if len(left) > LEFT:
        return [left, *(" " * (LEFT + 2) + line for line in words)]
    first, *rest = words
    return [f"{left:<{LEFT}}  {first}", *(" " * (LEFT + 2) + line for line in rest)]


def _typed(value: Any) -> str:
    """A default as it is typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(_typed, value))}]" if isinstance(value, list) else str(value)
