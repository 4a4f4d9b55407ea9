"""What is about to happen, in one line, before it does."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from simudy.attack.evidence import Evidence
from simudy.attack.methods.problem import Problem
from simudy.dynamics.adjoint import Recompute
from simudy.dynamics.factored import Factored
from simudy.dynamics.gradient import Mixed


def overview(evidence: Evidence, problem: Problem, method: object, *, device: torch.device) -> str:
    """Parameters, unknowns, steps and memory of an attack."""
    unknowns = problem.variables()
    images = unknowns["images"]
    shape = "×".join(map(str, evidence.shape))
    recipe = getattr(method, "recipe", None) or evidence.recipe
    steps = recipe.steps(len(images))
    parts = [
        f"{type(evidence.model.module).__name__} with {_parameters(evidence):,} parameters",
        f"{len(images)} images of {shape}: {len(images) * math.prod(evidence.shape):,} pixels to recover"
        + ("" if images.dim() == 4 else f" by {images.numel():,} coefficients"),
        f"{steps:,} steps simulated" if hasattr(method, "adjoint") else f"{type(method).__name__} simulates no run",
        f"about {estimated_mb(evidence, method, steps, rows=recipe.batch_size or len(images)):,.0f} MB",
        str(device),
    ]
    return " · ".join(parts)


def estimated_mb(evidence: Evidence, method: object, steps: int, *, rows: int) -> float:
    """Working memory of one outer step: what the gradient mode keeps of a step, times the steps it keeps.

    Rough: the second derivatives of a step are counted as three more passes over its activations.
    """
    adjoint, gradient = getattr(method, "adjoint", None), getattr(method, "gradient", None)
    weights = sum(t.numel() * t.element_size() for t in evidence.initial.values())
    step = 4 * rows * _activations(evidence)
    inner = gradient.inner if isinstance(gradient, Factored) else gradient
    state = step if isinstance(gradient, Factored) else 2 * weights
    each = state if isinstance(inner, Mixed) else state + step
    if isinstance(adjoint, Recompute):
        total = weights * -(-steps // adjoint.every) + each * min(adjoint.every, steps)
    else:
        total = each * steps
    return (total + step + 3 * weights) / 2**20


@torch.no_grad()
def _activations(evidence: Evidence) -> int:
    """Bytes that the layers put out for one image."""
    total, hooks = 0, []

    def count(layer: nn.Module, args: object, output: object) -> None:
        nonlocal total
        total += output.numel() * output.element_size() if isinstance(output, Tensor) else 0

    for layer in evidence.model.module.modules():
        if not list(layer.children()):
            hooks.append(layer.register_forward_hook(count))
    try:
        first = next(iter(evidence.initial.values()))
        evidence.model(evidence.initial, first.new_zeros(2, *evidence.shape))  # two: BatchNorm by batch needs them
    finally:
        for hook in hooks:
            hook.remove()
    return total // 2


def _parameters(evidence: Evidence) -> int:
    return sum(t.numel() for t in evidence.initial.values())
