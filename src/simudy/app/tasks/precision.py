"""How float32 numbers are multiplied: exactly, unless asked otherwise, and then not without a look
at what it costs.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

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


def set_precision(name: str, problem: Problem) -> None:
    """Multiply as ``name`` says from here on, after the first outer gradient was compared with that
    in IEEE float32.

    ``tf32`` rounds factors to 10 bits where the device has units for it, and changes nothing
    elsewhere.

    Raises:
        SimudyError: the gradient is off by more than a tenth.
    """
    multiply_exactly()
    if name == "ieee":
        return
    exact = _gradient(problem)
    torch.backends.fp32_precision = name  # pyright: ignore[reportAttributeAccessIssue]
    off = float((_gradient(problem) - exact).norm() / exact.norm())
    log.info("precision=%s: the first outer gradient is %.1e of its norm off", name, off)
    if not off <= _TOLERANCE:
        multiply_exactly()
        raise SimudyError(
            f"precision={name} puts the first outer gradient off by {off:.1e}: set precision=ieee"
        )


def _gradient(problem: Problem) -> Tensor:
    leaves = list(problem.variables().values())
    grads = torch.autograd.grad(problem.objective(0.0)[0], leaves)
    return torch.cat([grad.double().reshape(-1) for grad in grads])
