"""simudy: read training images back out of a network's weights.

It simulates the training run on dummy images and differentiates through the whole run. Public
names are imported on first use, so that the command line answers ``--help`` without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what editors and type checkers see; at run time `__getattr__` does the same
    from simudy.analysis.gallery import save_gallery as save_gallery
    from simudy.analysis.score import score as score
    from simudy.app.recorder.record import Recording as Recording
    from simudy.app.recorder.record import record as record
    from simudy.attack.distance import cosine as cosine
    from simudy.attack.distance import euclidean as euclidean
    from simudy.attack.evidence import Evidence as Evidence
    from simudy.attack.evidence import evidence_from_weights as evidence_from_weights
    from simudy.attack.methods.simudy import Simudy as Simudy
    from simudy.attack.prior import colour_variation as colour_variation
    from simudy.attack.prior import total_variation as total_variation
    from simudy.attack.search import Outer as Outer
    from simudy.attack.search import reconstruct as reconstruct
    from simudy.dynamics.adjoint import Direct as Direct
    from simudy.dynamics.adjoint import Recompute as Recompute
    from simudy.dynamics.adjoint import Truncated as Truncated
    from simudy.dynamics.augment import Augment as Augment
    from simudy.dynamics.gradient.factored import Factored as Factored
    from simudy.dynamics.gradient.first_order import FirstOrder as FirstOrder
    from simudy.dynamics.gradient.mixed import Mixed as Mixed
    from simudy.dynamics.gradient.reverse import Reverse as Reverse
    from simudy.dynamics.gradient.sharded import Sharded as Sharded
    from simudy.dynamics.gradient.traced import Traced as Traced
    from simudy.dynamics.implicit import Implicit as Implicit
    from simudy.dynamics.model.stateless import StatelessModel as StatelessModel
    from simudy.dynamics.optim.adagrad import Adagrad as Adagrad
    from simudy.dynamics.optim.adam import Adam as Adam
    from simudy.dynamics.optim.adam import AdamW as AdamW
    from simudy.dynamics.optim.clipped import Clipped as Clipped
    from simudy.dynamics.optim.interop.from_torch import from_torch as from_torch
    from simudy.dynamics.optim.interop.lr_scheduler import from_scheduler as from_scheduler
    from simudy.dynamics.optim.interop.torchopt import TorchOpt as TorchOpt
    from simudy.dynamics.optim.lion import Lion as Lion
    from simudy.dynamics.optim.rmsprop import RMSprop as RMSprop
    from simudy.dynamics.optim.sgd import SGD as SGD
    from simudy.dynamics.recipe import Recipe as Recipe
    from simudy.dynamics.simulate import simulate as simulate
    from simudy.errors import SimudyError as SimudyError
    from simudy.outcome import Reconstruction as Reconstruction

    __version__: str

_HOME = {
    "save_gallery": "simudy.analysis.gallery",
    "score": "simudy.analysis.score",
    "Recording": "simudy.app.recorder.record",
    "record": "simudy.app.recorder.record",
    "cosine": "simudy.attack.distance",
    "euclidean": "simudy.attack.distance",
    "Evidence": "simudy.attack.evidence",
    "evidence_from_weights": "simudy.attack.evidence",
    "Simudy": "simudy.attack.methods.simudy",
    "colour_variation": "simudy.attack.prior",
    "total_variation": "simudy.attack.prior",
    "Outer": "simudy.attack.search",
    "Reconstruction": "simudy.outcome",
    "reconstruct": "simudy.attack.search",
    "Augment": "simudy.dynamics.augment",
    "Direct": "simudy.dynamics.adjoint",
    "Recompute": "simudy.dynamics.adjoint",
    "Truncated": "simudy.dynamics.adjoint",
    "Factored": "simudy.dynamics.gradient.factored",
    "FirstOrder": "simudy.dynamics.gradient.first_order",
    "Mixed": "simudy.dynamics.gradient.mixed",
    "Reverse": "simudy.dynamics.gradient.reverse",
    "Sharded": "simudy.dynamics.gradient.sharded",
    "Traced": "simudy.dynamics.gradient.traced",
    "Implicit": "simudy.dynamics.implicit",
    "StatelessModel": "simudy.dynamics.model.stateless",
    "Adagrad": "simudy.dynamics.optim.adagrad",
    "Adam": "simudy.dynamics.optim.adam",
    "AdamW": "simudy.dynamics.optim.adam",
    "Clipped": "simudy.dynamics.optim.clipped",
    "from_torch": "simudy.dynamics.optim.interop.from_torch",
    "from_scheduler": "simudy.dynamics.optim.interop.lr_scheduler",
    "TorchOpt": "simudy.dynamics.optim.interop.torchopt",
    "Lion": "simudy.dynamics.optim.lion",
    "RMSprop": "simudy.dynamics.optim.rmsprop",
    "SGD": "simudy.dynamics.optim.sgd",
    "Recipe": "simudy.dynamics.recipe",
    "simulate": "simudy.dynamics.simulate",
    "SimudyError": "simudy.errors",
}

__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


if not TYPE_CHECKING:  # a checker is to complain of a name that does not exist

    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version

            return version("simudy")
        if name not in _HOME:
            raise AttributeError(f"module 'simudy' has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__"])
