"""Gradient modes: how ∇ℓ is computed and differentiated, one file each."""

from simudy.dynamics.gradient.base import Gradient, Loss
from simudy.dynamics.gradient.factored import Factored
from simudy.dynamics.gradient.first_order import FirstOrder
from simudy.dynamics.gradient.mixed import Mixed
from simudy.dynamics.gradient.reverse import Reverse
from simudy.dynamics.gradient.sharded import Sharded
from simudy.dynamics.gradient.traced import Traced

__all__ = ["Factored", "FirstOrder", "Gradient", "Loss", "Mixed", "Reverse", "Sharded", "Traced"]
