"""How float32 numbers are multiplied: exactly, unless asked otherwise, and then not without a look
at what it costs.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from simudy.attack.evidence import Evidence
from simudy.attack.methods.problem import Problem
from simudy.errors import SimudyError

log = logging.getLogger(__name__)

_TOLERANCE = (
    0.1  # of the first outer gradient: beyond it the steps no longer go where the objective falls
)


def multiply_exactly() -> None:
    """IEEE float32 everywhere: torch's own default lets a GPU's convolutions round to
    TensorFloat-32.
    """
    torch.backends.fp32_precision = "ieee"  # pyright: ignore[reportAttributeAccessIssue]


def at_precision(
    name: str, problem: Problem, evidence: Evidence, pose: Callable[[Evidence], Problem]
) -> Problem:
    """``problem``, multiplying as ``name`` says from here on, after its first outer gradient was
    compared with that in IEEE float32.

    ``tf32`` rounds factors to 10 bits where the device has units for it, and changes nothing
    elsewhere. ``bf16`` rounds those of convolutions to 8.

    Args:
        pose: the problem that evidence poses.

    Raises:
        SimudyError: the gradient is off by more than is allowed.
    """
    multiply_exactly()
    if name == "ieee":
        return problem
    exact = _gradient(problem)
    if name == "bf16":
        problem = pose(dataclasses.replace(evidence, model=evidence.model.rounded()))
    else:
        torch.backends.fp32_precision = name  # pyright: ignore[reportAttributeAccessIssue]
    off = float((_gradient(problem) - exact).norm() / exact.norm())
    log.info("precision=%s: the first outer gradient is %.1e of its norm off", name, off)
    if not off <= _TOLERANCE:
        multiply_exactly()
        raise SimudyError(
            f"precision={name} puts the first outer gradient off by {off:.1e}: set precision=ieee"
        )
    return problem


def _gradient(problem: Problem) -> Tensor:
    leaves = list(problem.variables().values())
    grads = torch.autograd.grad(problem.objective(0.0)[0], leaves)
    return torch.cat([grad.double().reshape(-1) for grad in grads])
