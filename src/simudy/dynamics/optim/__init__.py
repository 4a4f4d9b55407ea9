"""Inner optimizers: one dataclass each, and the wrappers, schedules and adapters around them."""

from simudy.dynamics.optim.accumulated import Accumulated
from simudy.dynamics.optim.adadelta import Adadelta
from simudy.dynamics.optim.adafactor import Adafactor
from simudy.dynamics.optim.adagrad import Adagrad
from simudy.dynamics.optim.adam import Adam, AdamW
from simudy.dynamics.optim.adamax import Adamax
from simudy.dynamics.optim.asgd import ASGD
from simudy.dynamics.optim.averaged import Averaged
from simudy.dynamics.optim.clipped import Clipped, ClippedAdaptively, ClippedByValue
from simudy.dynamics.optim.groups import Groups
from simudy.dynamics.optim.hyperparameters import (
    hyperparameters,
    scale_hyperparameters,
    with_hyperparameters,
)
from simudy.dynamics.optim.interop.backend import with_backend
from simudy.dynamics.optim.interop.from_torch import from_torch
from simudy.dynamics.optim.interop.higher import Higher
from simudy.dynamics.optim.interop.lr_scheduler import from_scheduler
from simudy.dynamics.optim.interop.torchopt import TorchOpt
from simudy.dynamics.optim.lion import Lion
from simudy.dynamics.optim.lookahead import Lookahead
from simudy.dynamics.optim.muon import Muon
from simudy.dynamics.optim.nadam import NAdam
from simudy.dynamics.optim.noised import Noised, private
from simudy.dynamics.optim.radam import RAdam
from simudy.dynamics.optim.rmsprop import RMSprop
from simudy.dynamics.optim.rprop import Rprop
from simudy.dynamics.optim.rule import PerTensor, Rule
from simudy.dynamics.optim.sam import SAM
from simudy.dynamics.optim.schedule import (
    cosine_decay,
    one_cycle,
    scaled,
    scheduled,
    step_decay,
    warmup,
)
from simudy.dynamics.optim.schedulefree import ScheduleFreeSGD
from simudy.dynamics.optim.sgd import SGD
from simudy.dynamics.optim.started import Started
from simudy.dynamics.optim.transformed import Transformed
from simudy.dynamics.optim.wrapper import Wrapper

__all__ = [
    "ASGD",
    "SAM",
    "SGD",
    "Accumulated",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Averaged",
    "Clipped",
    "ClippedAdaptively",
    "ClippedByValue",
    "Groups",
    "Higher",
    "Lion",
    "Lookahead",
    "Muon",
    "NAdam",
    "Noised",
    "PerTensor",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Rule",
    "ScheduleFreeSGD",
    "Started",
    "TorchOpt",
    "Transformed",
    "Wrapper",
    "cosine_decay",
    "from_scheduler",
    "from_torch",
    "hyperparameters",
    "one_cycle",
    "private",
    "scale_hyperparameters",
    "scaled",
    "scheduled",
    "step_decay",
    "warmup",
    "with_backend",
    "with_hyperparameters",
]
