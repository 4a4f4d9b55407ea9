"""Inner optimizers: one dataclass each."""

from simudy.dynamics.optim.clipped import Clipped
from simudy.dynamics.optim.rule import PerTensor, Rule
from simudy.dynamics.optim.sgd import SGD

__all__ = ["SGD", "Clipped", "PerTensor", "Rule"]
