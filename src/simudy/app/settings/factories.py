"""The recipe, the attack and its outer loop out of their settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer

from simudy.app.settings.check import check, locate, parameters
from simudy.app.settings.images.public import cleaning
from simudy.app.settings.images.start import load_start
from simudy.app.settings.instantiate import (
    build,
    build_function,
    build_partial,
    drop_nulls,
    fields_of,
)
from simudy.app.settings.order import load_order
from simudy.attack.evidence import Evidence
from simudy.attack.methods.problem import Method, Problem
from simudy.attack.methods.simudy import fitting_gradient
from simudy.attack.search import Outer, Search
from simudy.dynamics.augment import Augment
from simudy.dynamics.gradient import Gradient, Reverse, Sharded
from simudy.dynamics.optim import Rule, scheduled, with_backend
from simudy.dynamics.optim.schedule import Schedule
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError

GUESSES = ("inner", "recipe")


def device(name: str) -> torch.device:
    """The device a setting names; ``auto`` is a GPU where there is one, and where there are several
    the jobs of a sweep take turns.
    """
    if name == "auto":
        return torch.device(_own_gpu() if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise SimudyError(f"device={name}: choose from auto, cpu, cuda") from error
    if found.type not in ("cpu", "cuda"):
        raise SimudyError(f"device={name}: choose from auto, cpu, cuda")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise SimudyError(f"device={name}, but there is no usable GPU: set device=cpu")
    return found


def _own_gpu() -> str:
    """``cuda``, the process' own; in a sweep that of the job's number."""
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if hydra is None or hydra.mode != RunMode.MULTIRUN:
        return "cuda"
    return f"cuda:{hydra.job.num % torch.cuda.device_count()}"


def method(cfg: DictConfig, evidence: Evidence, *, labels: str | Tensor) -> Method:
    """The attack: its own options, and of the settings that attacks share, those it takes.

    Args:
        labels: how the dummies' labels begin (see ``labels.resolve_labels``).
    """
    fields = {k: v for k, v in fields_of(cfg.attack, "attack").items() if k not in GUESSES}
    takes = parameters(locate(fields["_target_"], "attack"))
    shared = _shared(cfg, guessed(cfg, evidence.recipe), evidence, labels)
    given = {k: v for k, v in shared.items() if k in takes and k not in fields}
    made = build_partial(fields, "attack")(**given)
    if not isinstance(made, Method):
        base = "simudy.attack.methods.problem.Method"
        raise SimudyError(f"attack._target_={fields['_target_']} is no method: derive from {base}")
    return made if cfg.parallel is None else _shared_out(made, cfg.parallel, takes)


def _shared_out(made: Any, parallel: str, takes: Collection[str]) -> Method:
    """The attack with each process computing a share of it."""
    if parallel == "images":
        if "gradient" in takes:
            return dataclasses.replace(made, gradient=Sharded(made.gradient or Reverse()))
        raise SimudyError(f"{type(made).__name__} takes no gradient to share: leave parallel out")
    if "shared" in takes:
        return dataclasses.replace(made, shared=True)
    raise SimudyError(
        f"parallel=steps shares out steps that do not wait for each other, and those of "
        f"{type(made).__name__} do: set attack=anchored, or parallel=images"
    )


def outer(cfg: DictConfig) -> Outer:
    """The outer loop."""
    made = {
        k: build_partial(cfg.outer[k], f"outer.{k}")
        for k in ("optimizer", "schedule")
        if cfg.outer[k] is not None
    }
    plain: dict[str, Any] = OmegaConf.to_container(cfg.outer, resolve=True)  # type: ignore[assignment]
    numbers = {k: v for k, v in plain.items() if k not in ("optimizer", "schedule", "decode")}
    lrs = numbers.pop("lrs") or {}
    return Outer(**numbers, lrs=lrs, **made)


def new_search(cfg: DictConfig, problem: Problem) -> Search:
    """The outer loop over a problem, before its first step.

    Raises:
        SimudyError: torch's optimizer or schedule refuses its options.
    """
    loop = outer(cfg)
    try:
        _rehearse(loop)
        search = Search(problem, loop)
    except SimudyError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise SimudyError(f"outer.optimizer or outer.schedule: {reason}: set other ones") from error
    if not isinstance(search.optimizer, Optimizer):
        raise SimudyError("outer.optimizer makes no torch optimizer: set outer.optimizer._target_")
    return search


def _rehearse(loop: Outer) -> None:
    """Two steps on a number of no account: what torch refuses it refuses here, not in the end."""
    leaf = torch.zeros((), requires_grad=True)
    optimizer = loop.optimizer([leaf], lr=loop.lr)
    schedule = loop.schedule(optimizer) if loop.schedule else None
    for _ in range(2):
        leaf.grad = torch.ones(())
        optimizer.step(lambda: leaf.detach())  # type: ignore[arg-type]
        if schedule is not None:
            schedule.step()


def _shared(
    cfg: DictConfig, recipe: Recipe, evidence: Evidence, labels: str | Tensor
) -> dict[str, Any]:
    start, found = load_start(cfg, evidence)
    return {
        "distance": _distance(cfg),
        "tv": cfg.prior.tv,
        "colour": cfg.prior.colour,
        "box": cfg.prior.box,
        "term": _prior_term(cfg, evidence),
        "images": cfg.dummy.images,
        "decay": cfg.dummy.decay,
        "start": start,
        "labels": labels if found is None else found,
        "noise": cfg.dummy.noise,
        "learn": tuple(cfg.dummy.learn),
        "recipe": recipe,
        "adjoint": build(cfg.adjoint, "adjoint"),
        "gradient": _gradient(cfg, recipe),
    }


def _distance(cfg: DictConfig) -> Any:
    named = isinstance(cfg.distance, str)
    return cfg.distance if named else build_function(cfg.distance, "distance")


def _prior_term(cfg: DictConfig, evidence: Evidence) -> Any:
    """What was learned of public images and a prior of one's own, weighted."""
    terms = []
    if cfg.prior.denoiser:
        terms.append((cfg.prior.denoiser, cleaning(cfg, evidence)))
    if cfg.prior.term and cfg.prior.term.get("_target_") is not None:
        terms.append((cfg.prior.weight, build_function(cfg.prior.term, "prior.term")))
    if not terms:
        return None
    return lambda images: sum(weight * term(images) for weight, term in terms)


def _gradient(cfg: DictConfig, recipe: Recipe) -> Gradient:
    """As set; where nothing is, what fits the rule."""
    if OmegaConf.is_config(cfg.gradient) and cfg.gradient.get("_target_", "") is None:
        return fitting_gradient(recipe)
    return build(cfg.gradient, "gradient")


RECIPE = f"{Recipe.__module__}.Recipe"


def recipe(cfg: DictConfig) -> Recipe:
    """How the victim was trained."""
    said: dict[str, Any] = OmegaConf.to_container(cfg.recipe, resolve=True)  # type: ignore[assignment]
    said.pop("loss")
    said["seed"] = cfg.seed if said["seed"] is None else said["seed"]
    return Recipe(build(cfg.inner, "inner"), **_parts(said, "recipe"))


def _parts(said: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of a recipe, with those that are more than numbers made."""
    makers = {
        "schedule": _schedule,
        "scheduler": _scheduler,
        "order": load_order,
        "augment": _augment,
    }
    return {k: makers[k](v, f"{where}.{k}") if k in makers else v for k, v in said.items()}


def _augment(said: Any, where: str) -> Any:
    if not said or all(value is None for value in said.values()):
        return None
    target = locate(said["_target_"], where)
    if not (isinstance(target, type) and issubclass(target, Augment)):
        raise SimudyError(
            f"{where}._target_={said['_target_']} is saved with the evidence, so make it a "
            "dataclass derived from simudy.Augment"
        )
    return build(said, where)


def _scheduler(said: Any, where: str) -> Any:
    if not said or all(value is None for value in said.values()):
        return None
    return build_partial(said, where)


def loss(cfg: DictConfig) -> nn.Module | None:
    """The loss of ``torch.nn`` that the victim was trained with; None stands for cross-entropy."""
    if not cfg.recipe.loss or all(value is None for value in cfg.recipe.loss.values()):
        return None
    fields = fields_of(cfg.recipe.loss, "recipe.loss")
    weights = {k: torch.tensor(v, dtype=torch.float32) for k, v in fields.items() if _numbers(v)}
    made = build_partial({k: v for k, v in fields.items() if k not in weights}, "recipe.loss")
    return made(**weights)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, (int, float)) for v in value)


def guessed(cfg: DictConfig, known: Recipe) -> Recipe:
    """The recipe as the attack takes it to be: as known, but for what ``attack.inner`` and
    ``attack.recipe`` say.
    """
    said = _said(cfg, "attack.recipe")
    check({"_target_": RECIPE, **said}, "attack.recipe")
    said = _parts(said, "attack.recipe")
    rule = with_backend(_guessed_rule(known.optimizer, _said(cfg, "attack.inner")), cfg.backend)
    return dataclasses.replace(known, optimizer=rule, **said)


def _guessed_rule(known: Rule, said: Mapping[str, Any]) -> Rule:
    """``known`` with other hyper-parameters (also those of a rule it wraps), or another rule
    altogether.
    """
    if "_target_" in said:
        return build(dict(said), "attack.inner")
    own = {field.name for field in dataclasses.fields(known)}  # type: ignore[arg-type]
    outer = {k: v for k, v in said.items() if k in own}
    check(
        {"_target_": f"{type(known).__module__}.{type(known).__qualname__}", **outer},
        "attack.inner",
    )
    if outer:
        known = dataclasses.replace(known, **outer)  # type: ignore[type-var]
    wrapped = {k: v for k, v in said.items() if k not in own}
    return scheduled(known, 1, **wrapped)[0] if wrapped else known


def _said(cfg: DictConfig, key: str) -> dict[str, Any]:
    node = OmegaConf.select(cfg, key)
    if node is None:
        return {}
    if not OmegaConf.is_dict(node):
        raise SimudyError(f"{key}={node}: give its fields, as in {key}.…=…, or null")
    return drop_nulls(OmegaConf.to_container(node, resolve=True))


def _schedule(said: Any, where: str) -> Schedule | None:
    """Factors as a list, or from a node that makes a schedule (``simudy.dynamics.optim``), for its
    ``steps``.
    """
    if said is None or isinstance(said, (list, float, int)):
        return said
    made: Any = build(said, where)
    if isinstance(made, (list, float, int)):
        return made
    if not isinstance(said.get("steps"), int):
        raise SimudyError(f"{where} must be written out beside the weights: set {where}.steps")
    return [float(made(step)) for step in range(said["steps"])]
