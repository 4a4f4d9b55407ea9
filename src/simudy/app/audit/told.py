"""What a report tells beside the figures: who knew what, what was assumed, tried and spent."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from simudy.app.store import history
from simudy.app.store.beside import load_agreement, load_found
from simudy.app.store.run_directory import RunDirectory
from simudy.attack.evidence import Evidence
from simudy.dynamics.optim import Rule

_BELIEVED = ("tv", "colour", "box", "denoiser")  # of images before any evidence


def told_of(
    cfg: DictConfig, held: Evidence, result: Mapping[str, Any], folder: RunDirectory, images: Any
) -> dict[str, Any]:
    """What ``content_of`` takes as ``told``, for a run in its directory."""
    agreement = load_agreement(folder.agreement, images)
    return {
        "knowledge": knowledge(cfg, held),
        "assumed": assumed(cfg, held),
        "read": [*held.notes.get("findings", ()), *result.get("limits", ())],
        "attacks": list(_attacks(cfg, result, agreement)),
        "compute": _compute(result),
        "agreement": agreement,
        "membership": load_found(folder.membership),
        "exposure": load_found(folder.exposure),
        "diagnosis": load_found(folder.diagnosis),
        "began": _began(history.load(folder.history)) if cfg.dummy.start is None else None,
    }


def knowledge(cfg: DictConfig, held: Evidence) -> dict[str, Any]:
    """The evidence, in a few rows."""
    count = sum(w.numel() for w in held.initial.values())
    size = "×".join(map(str, held.shape))
    return {
        "weights": f"before and after training, {count:,} parameters ({_origin(cfg)})",
        "published as": str(held.published).removeprefix("torch."),
        "images": f"{held.n or 'an unknown number'} of {size}, {held.classes} classes",
        "rule": in_words(held.recipe.optimizer),
        "epochs": held.recipe.epochs,
        "batch": held.recipe.batch_size or "all images",
        "order of images": _order(held),
        "labels": _labels(cfg),
    }


def assumed(cfg: DictConfig, held: Evidence) -> list[str]:
    """What a person said or guessed, and no file proves."""
    return [*_of_run(cfg, held), *_guesses(cfg), *_of_images(cfg)]


def guesses(cfg: DictConfig) -> dict[str, Any]:
    """Where the attack departs from the recipe it was told: ``attack.inner``, ``attack.recipe``."""
    said = {key: OmegaConf.select(cfg, f"attack.{key}") for key in ("inner", "recipe")}
    return {
        f"attack.{key}.{name}": value
        for key, node in said.items()
        if OmegaConf.is_dict(node)
        for name, value in node.items()
        if value is not None
    }


def in_words(rule: Rule) -> str:
    """``SGD(lr=0.1, momentum=0.9)``: what is set, and not what is nought or off."""
    fields = dataclasses.fields(rule)  # type: ignore[arg-type]
    values = {f.name: getattr(rule, f.name) for f in fields}
    kept = {
        name: in_words(value) if isinstance(value, Rule) else f"{value:g}"
        for name, value in values.items()
        if isinstance(value, Rule) or (isinstance(value, (int, float)) and value)
    }
    return f"{type(rule).__name__}({', '.join(f'{k}={v}' for k, v in kept.items())})"


def is_own_victim(cfg: DictConfig) -> bool:
    """Whether the victim was trained here, so that its recipe is known."""
    return not (cfg.evidence.initial or cfg.evidence.folder)


def _origin(cfg: DictConfig) -> str:
    if is_own_victim(cfg):
        return "a victim trained here"
    return "an earlier run's evidence" if cfg.evidence.folder else "files"


def _order(held: Evidence) -> str:
    recipe = held.recipe
    if recipe.batch_size is None or (held.n and recipe.batch_size >= held.n):
        return "of no matter: one batch"
    known = recipe.order is not None or recipe.shuffle
    return "known" if known else "as they come, the same every epoch"


def _labels(cfg: DictConfig) -> str:
    said = str(cfg.dummy.labels).lower()
    return {"true": "the true ones", "learned": "unknown, learned along"}.get(said, said)


def _of_run(cfg: DictConfig, held: Evidence) -> Iterator[str]:
    if is_own_victim(cfg):
        yield "That the attacker knows the recipe exactly: this victim was trained here."
        return
    if cfg.evidence.folder:
        yield "That the recipe in the evidence's folder is the run's."
        return
    recipe = held.recipe
    batch = recipe.batch_size or "all images"
    length = f"{recipe.epochs} epochs, batch {batch}"
    if held.notes.get("filled"):
        yield f"Typed, as far as the files do not tell it: {length}."
    else:
        yield f"Typed, not read: {in_words(recipe.optimizer)}, {length}."
    yield f"Typed: {held.n} images." if held.n else "The number of images: not told."
    yield f"Typed: images normalised by mean {list(held.mean)} and deviation {list(held.std)}."


def _guesses(cfg: DictConfig) -> Iterator[str]:
    for name, value in guesses(cfg).items():
        yield f"Guessed: {name}={value}."


def _of_images(cfg: DictConfig) -> Iterator[str]:
    if str(cfg.dummy.labels).lower() == "true":
        yield "The true labels, which no attacker holds: an ablation."
    weights = {name: cfg.prior[name] for name in _BELIEVED if cfg.prior[name]}
    if weights:
        told = ", ".join(f"{name} {value:g}" for name, value in weights.items())
        yield f"Of images before any evidence: {told} (prior)."


def _attacks(
    cfg: DictConfig, result: Mapping[str, Any], agreement: Mapping[str, Any] | None
) -> Iterator[dict[str, Any]]:
    distance = result.get("distance")
    yield {
        "method": str(cfg.attack._target_).rpartition(".")[2] if cfg.attack else None,
        "images sought as": cfg.dummy.images,
        "began at": _beginning(cfg),
        "seed": cfg.seed,
        "iterations": f"{result.get('iterations', 0):,} of {cfg.outer.iterations:,}",
        "ended": result["status"],
        "distance from the weights": distance if distance is not None else math.nan,
        "decoded off units": "yes" if cfg.outer.decode else "no",
    }
    for name in agreement["searches"] if agreement else ():
        yield {"independent search": name}


def _began(rows: Iterable[Mapping[str, Any]]) -> float | None:
    """The distance of the dummies as they began, where the search began at noise."""
    first = next(iter(rows), {}).get("distance")
    return float(first) if first not in (None, "") else None


def _beginning(cfg: DictConfig) -> Any:
    said = cfg.dummy.start
    if said is None:
        return "noise"
    return OmegaConf.to_container(said, resolve=True) if OmegaConf.is_config(said) else said


def _compute(result: Mapping[str, Any]) -> dict[str, Any]:
    versions = result.get("versions") or {}
    return {
        "seconds": result.get("seconds"),
        "seconds per iteration": result.get("seconds_per_iteration"),
        "peak memory, MB": result.get("peak_memory_mb"),
        "device": result.get("device"),
        "software": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
