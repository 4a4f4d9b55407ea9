"""simudy: read training images back out of a network's weights, by differentiating through its
training run.

Public names are imported on first use, so that the command line answers ``--help`` without
importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "StatelessModel": "simudy.dynamics.model.stateless",
    "simulate": "simudy.dynamics.simulate",
    "Direct": "simudy.dynamics.adjoint",
    "Recompute": "simudy.dynamics.adjoint",
    "Reverse": "simudy.dynamics.gradient.reverse",
    "Mixed": "simudy.dynamics.gradient.mixed",
    "Traced": "simudy.dynamics.gradient.traced",
    "Factored": "simudy.dynamics.gradient.factored",
    **dict.fromkeys(
        ("SGD", "Clipped", "Adam", "AdamW", "RMSprop", "Adagrad", "Lion", "TorchOpt"),
        "simudy.dynamics.optim",
    ),
    "cosine": "simudy.attack.distance",
    "euclidean": "simudy.attack.distance",
    "total_variation": "simudy.attack.prior",
    "Evidence": "simudy.attack.evidence",
    "Recipe": "simudy.dynamics.recipe",
    "reconstruct": "simudy.attack.search",
    "score": "simudy.analysis.score",
    "SimudyError": "simudy.errors",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'simudy' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
