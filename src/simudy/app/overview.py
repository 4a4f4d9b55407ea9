"""What is about to happen, in one line, before it does."""

from __future__ import annotations

import math

import torch

from simudy.app.memory import estimated_mb, recipe_of
from simudy.attack.evidence import Evidence
from simudy.attack.methods.problem import Problem
from simudy.attack.methods.simudy import SimudyProblem
from simudy.dynamics.gradient.factored import Factored


def overview(evidence: Evidence, problem: Problem, method: object, *, device: torch.device) -> str:
    """Parameters, unknowns, steps and memory of an attack."""
    unknowns = problem.variables()
    images = unknowns["images"]
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
