"""The attack and its outer loop out of their settings."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from simudy.app.build import build, described, unfinished
from simudy.app.check import fits, locate, parameters
from simudy.app.recipe import guessed
from simudy.app.secret import Secret
from simudy.app.start import beginning
from simudy.attack.evidence import Evidence
from simudy.attack.methods.problem import Method
from simudy.attack.reconstruct import Outer
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError

GUESSES = ("inner", "recipe")


def device(name: str) -> torch.device:
    """The device a setting names; ``auto`` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise SimudyError(f"device={name}: choose from auto, cpu, cuda") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise SimudyError(f"device={name}, but there is no usable GPU: set device=cpu")
    return found


def method(cfg: DictConfig, evidence: Evidence, secret: Secret | None) -> Method:
    """The attack: its own options, and of the settings that attacks share, those it takes."""
    fields = {k: v for k, v in described(cfg.attack, "attack").items() if k not in GUESSES}
    takes = parameters(locate(fields["_target_"], "attack"))
    shared = _shared(cfg, guessed(cfg, evidence.recipe), evidence, secret)
    given = {k: v for k, v in shared.items() if k in takes and k not in fields}
    return unfinished(fields, "attack")(**given)


def outer(cfg: DictConfig) -> Outer:
    """The outer loop."""
    made = {
        k: unfinished(cfg.outer[k], f"outer.{k}")
        for k in ("optimizer", "schedule")
        if cfg.outer[k] is not None
    }
    plain: dict[str, Any] = OmegaConf.to_container(cfg.outer, resolve=True)  # type: ignore[assignment]
    numbers = {k: v for k, v in plain.items() if k not in ("optimizer", "schedule")}
    if not fits(lrs := numbers.pop("lrs") or {}, dict[str, float]) or not fits(
        [*lrs.values()], list[float]
    ):
        raise SimudyError(
            f"outer.lrs={lrs}: give a step size by variable, as in outer.lrs={{images: 0.1}}"
        )
    return Outer(**numbers, lrs=lrs, **made)


def _shared(
    cfg: DictConfig, recipe: Recipe, evidence: Evidence, secret: Secret | None
) -> dict[str, Any]:
    start, labels = beginning(cfg, evidence)
    return {
        "distance": cfg.distance,
        "tv": cfg.prior.tv,
        "box": cfg.prior.box,
        "images": cfg.dummy.images,
        "decay": cfg.dummy.decay,
        "start": start,
        "labels": _labels(cfg.dummy.labels, secret) if labels is None else labels,
        "noise": cfg.dummy.noise,
        "learn": tuple(cfg.dummy.learn),
        "recipe": recipe,
        "adjoint": build(cfg.adjoint, "adjoint"),
        "gradient": build(cfg.gradient, "gradient"),
    }


def _labels(said: Any, secret: Secret | None) -> str | Tensor:
    """How labels begin; ``true`` and ``wrong`` draw on the secret's, which no attacker holds:
    ablations.
    """
    if OmegaConf.is_list(said):
        return _given(list(said))
    if (said := str(said).lower()) in ("true", "wrong"):  # YAML reads the first as a truth value
        if secret is None:
            raise SimudyError(
                f"dummy.labels={said} needs the secret, and there is none: choose balanced or "
                "learned"
            )
        true = secret.victim.labels
        return true if said == "true" else (true + 1) % len(secret.victim.classes)
    if said not in ("balanced", "learned"):
        raise SimudyError(
            f"dummy.labels={said}: choose balanced, learned, true or wrong, or give a list of "
            "class numbers"
        )
    return said


def _given(labels: list[Any]) -> Tensor:
    if not all(isinstance(label, int) for label in labels):
        raise SimudyError(f"dummy.labels={labels}: give class numbers, counted from 0")
    return torch.tensor(labels, dtype=torch.int64)
