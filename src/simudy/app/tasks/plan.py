"""An attack before it starts: its memory, the way to differentiate that fits, and both in one line."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from simudy.attack.evidence import Evidence
from simudy.attack.methods.problem import Method, Problem
from simudy.attack.methods.simudy import SimudyProblem
from simudy.dynamics.adjoint import Direct, Recompute
from simudy.dynamics.gradient import Gradient, Mixed
from simudy.dynamics.gradient.factored import Factored
from simudy.dynamics.recipe import Recipe

log = logging.getLogger(__name__)

_SHARE = 0.7  # of the device's memory, for the estimate is rough and others may work there too


def fit_to_memory(
    method: Method, evidence: Evidence, *, n: int, device: torch.device, limit: float | None = None
) -> Method:
    """The method as it is or, where that would not fit, differentiated in a way that takes less
    memory and more time.

    The result is the same, to rounding. What is chosen is logged; where nothing fits, the leanest,
    with a warning.

    Args:
        n: number of dummies.
        limit: GiB that an outer step may take. Default: seven tenths of the device's memory, used
            or free, so that a run goes on as it began.
    """
    allowed = limit * 1024 if limit else _SHARE * _memory_mb(device)
    before = estimated_mb(method, evidence, n=n)
    if before <= allowed or not hasattr(method, "gradient"):
        return method
    leaner = list(_leaner(method, recipe_of(method, evidence).steps(n)))
    estimates = [estimated_mb(m, evidence, n=n) for m in leaner]
    at = next((i for i, mb in enumerate(estimates) if mb <= allowed), len(leaner) - 1)
    log.info(
        "about %.0f of %.0f MB: %s, for %.0f", before, allowed, _named(leaner[at]), estimates[at]
    )
    if estimates[at] > allowed:
        log.warning(
            "even that may not fit: use smaller batches, a narrower model or a larger device"
        )
    return leaner[at]


def estimated_mb(method: object, evidence: Evidence, *, n: int) -> float:
    """MiB that one outer step works with: what is kept of every step, and what one step needs while
    it is at work.

    Within a factor of about 1.5 of the peaks measured for MLPs and residual networks.
    """
    recipe = recipe_of(method, evidence)
    adjoint, gradient = getattr(method, "adjoint", None), getattr(method, "gradient", None)
    steps = 1 if adjoint is None else recipe.steps(n)
    weights, work = _weights(evidence), min(recipe.batch_size or n, n) * _activations(evidence)
    kept = weights if isinstance(_innermost(gradient), Mixed) else 2 * weights + work
    if isinstance(gradient, Factored) and _is_linear(evidence):
        kept = 2 * work  # the weights are never written, their factors are
    if isinstance(adjoint, Recompute):
        total = weights * math.ceil(steps / adjoint.every) + kept * min(adjoint.every, steps)
    else:
        total = kept * steps
    return (total + 3 * (work + weights)) / 2**20


def recipe_of(method: object, evidence: Evidence) -> Recipe:
    """The run that a method simulates: its own guess, or what the evidence says."""
    return getattr(method, "recipe", None) or evidence.recipe


def _is_linear(evidence: Evidence) -> bool:
    """Are all weights matrices, which is where factoring can pay?"""
    return all(w.dim() <= 2 for w in evidence.initial.values())


def _memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1] / 2**20
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20


def _leaner(method: Any, steps: int) -> Iterator[Method]:
    """The same method, ever leaner and slower."""
    yield (method := dataclasses.replace(method, gradient=_mixed(method.gradient)))
    if hasattr(method, "adjoint"):
        yield dataclasses.replace(method, adjoint=Recompute(math.isqrt(steps)))


def _mixed(gradient: Gradient) -> Gradient:
    if isinstance(gradient, Factored):
        return dataclasses.replace(gradient, inner=_mixed(gradient.inner))
    return gradient if isinstance(gradient, Mixed) else Mixed()


def _innermost(gradient: object) -> object:
    return gradient.inner if isinstance(gradient, Factored) else gradient


def _named(method: Any) -> str:
    adjoint = (
        f", adjoint {method.adjoint}"
        if not isinstance(getattr(method, "adjoint", Direct()), Direct)
        else ""
    )
    return f"gradient {method.gradient}{adjoint}"


def _weights(evidence: Evidence) -> int:
    return sum(t.numel() * t.element_size() for t in evidence.initial.values())


@torch.no_grad()
def _activations(evidence: Evidence) -> int:
    """Bytes that the layers put out for one image."""
    total, hooks = 0, []

    def count(layer: nn.Module, args: tuple[Any, ...], output: object) -> None:
        nonlocal total
        new = isinstance(output, Tensor) and not any(
            output is arg for arg in args
        )  # a folded norm hands through
        total += output.numel() * output.element_size() if new else 0  # type: ignore[union-attr]

    for layer in evidence.model.module.modules():
        if not list(layer.children()):
            hooks.append(layer.register_forward_hook(count))
    try:
        first = next(iter(evidence.initial.values()))
        evidence.model(
            evidence.initial, first.new_zeros(2, *evidence.shape)
        )  # two: BatchNorm by batch needs them
    finally:
        for hook in hooks:
            hook.remove()
    return total // 2


def overview(evidence: Evidence, problem: Problem, method: object, *, device: torch.device) -> str:
    """Parameters, unknowns, steps and memory of an attack."""
    unknowns = problem.variables()
    images = unknowns["latent"]
    shape = "×".join(map(str, evidence.shape))
    steps = recipe_of(method, evidence).steps(len(images))
    parts = [
        f"{type(evidence.model.module).__name__} with {_parameters(evidence):,} parameters",
        f"{len(images)} images of {shape}: {len(images) * math.prod(evidence.shape):,} pixels to "
        "recover" + ("" if images.dim() == 4 else f" by {images.numel():,} coefficients"),
        f"{steps:,} steps simulated"
        if hasattr(method, "adjoint")
        else f"{type(method).__name__} simulates no run",
        *_factored(problem, method),
        f"about {estimated_mb(method, evidence, n=len(images)):,.0f} MB",
        str(device),
    ]
    return " · ".join(parts)


def _factored(problem: Problem, method: object) -> list[str]:
    """How many weights are kept as low-rank factors, where some are."""
    gradient = getattr(method, "gradient", None)
    if not isinstance(gradient, Factored) or not isinstance(problem, SimudyProblem):
        return []
    known = problem.evidence
    chosen = gradient.chosen(known.model.loss, known.initial, problem.dummy.batches(problem.recipe))
    return [f"{len(chosen)} of {len(known.initial)} weights factored"] if chosen else []


def _parameters(evidence: Evidence) -> int:
    return sum(t.numel() for t in evidence.initial.values())
