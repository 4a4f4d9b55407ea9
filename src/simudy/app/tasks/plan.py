"""An attack before it starts: its memory, the way to differentiate that fits, and both in one
line.
"""

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
from simudy.dynamics.adjoint import Direct
from simudy.dynamics.gradient import Reverse
from simudy.dynamics.gradient.base import size
from simudy.dynamics.recipe import Recipe

log = logging.getLogger(__name__)

_SHARE = 0.7  # of the device's memory, for the estimate is rough and others may work there too


def fit_to_memory(
    method: Method, evidence: Evidence, *, n: int, device: torch.device, limit: float | None = None
) -> Method:
    """The method, differentiated in a way that fits into memory; unchanged where it fits as it is.

    The result is the same, to rounding. What is chosen is logged; where nothing fits, the leanest,
    with a warning.

    Args:
        n: number of dummies.
        limit: GiB that an outer step may take. Default: seven tenths of the device's memory, used
            or free, so that a run goes on as it began.
    """
    allowed = limit * 1024 if limit else _SHARE * _memory_mb(device)
    before = estimated_mb(method, evidence, n=n)
    ways = [method, *_leaner(method.fitted(evidence), recipe_of(method, evidence).steps(n))]
    if before <= allowed or len(ways) == 1:
        return method
    estimates = [estimated_mb(m, evidence, n=n) for m in ways]
    at = next((i for i, mb in enumerate(estimates) if mb <= allowed), len(ways) - 1)
    line = "about %.0f of %.0f MB: %s, for %.0f"
    log.info(line, before, allowed, _named(ways[at]), estimates[at])
    if estimates[at] > allowed:
        log.warning("even that may not fit: use smaller batches, a narrower model or more memory")
    return ways[at]


def estimated_mb(method: Method, evidence: Evidence, *, n: int) -> float:
    """MiB that one outer step works with: what is kept of all steps, and what one needs at work.

    Within a factor of about 1.5 of the peaks measured for MLPs and residual networks.
    """
    recipe, params = recipe_of(method, evidence), size(evidence.initial)
    work = min(recipe.batch_size or n, n) * _activations(evidence)
    per_step = (method.fitted(evidence).gradient or Reverse()).kept(evidence.initial, work)
    adjoint, steps = method.adjoint or Direct(), recipe.steps(n) if method.adjoint else 1
    kept = adjoint.kept(steps, per_step=per_step, params=params)
    kept += method.held(evidence, steps=steps)
    return (kept + 3 * (work + params)) / 2**20


def recipe_of(method: Method, evidence: Evidence) -> Recipe:
    """The run that a method simulates: its own guess, or what the evidence says."""
    return method.recipe or evidence.recipe


def _leaner(method: Any, steps: int) -> Iterator[Method]:
    """The same method, ever leaner and slower."""
    while method.gradient is not None and (gradient := method.gradient.leaner()) is not None:
        yield (method := dataclasses.replace(method, gradient=gradient))
    while method.adjoint is not None and (adjoint := method.adjoint.leaner(steps)) is not None:
        yield (method := dataclasses.replace(method, adjoint=adjoint))


def _named(method: Method) -> str:
    adjoint = f", adjoint {method.adjoint}" if method.adjoint not in (None, Direct()) else ""
    return f"gradient {method.gradient}{adjoint}"


def _memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1] / 2**20
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20


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


def overview(evidence: Evidence, problem: Problem, method: Method, *, device: torch.device) -> str:
    """Parameters, unknowns, steps and memory of an attack, in one line."""
    latent, shape = problem.variables()["latent"], "×".join(map(str, evidence.shape))
    n, steps = len(latent), recipe_of(method, evidence).steps(len(latent))
    parameters = sum(t.numel() for t in evidence.initial.values())
    pixels = n * math.prod(evidence.shape)
    by = "" if latent.dim() == 4 else f" by {latent.numel():,} coefficients"
    simulated = f"{steps:,} steps simulated"
    parts = [
        f"{type(evidence.model.module).__name__} with {parameters:,} parameters",
        f"{n} images of {shape}: {pixels:,} pixels to recover{by}",
        simulated if method.adjoint else f"{type(method).__name__} simulates no run",
        *problem.notes(),
        f"about {estimated_mb(method, evidence, n=n):,.0f} MB",
        str(device),
    ]
    return " · ".join(parts)
