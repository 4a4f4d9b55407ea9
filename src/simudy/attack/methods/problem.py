"""What every method of attack gives the outer loop: variables, an objective and the images they
stand for.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from simudy.attack.evidence import Evidence


class Problem(Protocol):
    """A minimisation problem over the variables, leaf tensors of autograd. Implementations derive from it, for what does
    nothing here.
    """

    def variables(self) -> dict[str, Tensor]:
        """The leaves to move, by name; the outer optimizer gives each a parameter group."""
        ...

    def objective(self, progress: float) -> tuple[Tensor, Tensor]:
        """``(objective, distance)``, scalars, at ``progress`` in [0, 1) through the iterations."""
        ...

    def stage(self, progress: float) -> object:
        """What the objective means at this point: only objectives of one stage are compared.
        Default: one for all.
        """
        return None

    def images(self) -> Tensor:
        """Normalised images ``(m, c, h, w)`` at the present variables."""
        ...

    def labels(self) -> Tensor:
        """Class indices ``(m,)``, or probabilities ``(m, classes)``."""
        ...

    def precondition(self) -> None:
        """Called between the backward pass and the outer optimizer's step: may rescale the leaves'
        gradients.
        """

    def refined(self, *, damping: float) -> dict[str, Tensor] | None:
        """What a step without derivatives makes of the variables it moves; shorter with
        ``damping``. Default: none.
        """
        return None


class Method(Protocol):
    """A way to attack: a dataclass of settings that poses the problem."""

    def problem(self, evidence: Evidence, *, seed: int) -> Problem:
        """The problem for this evidence; ``seed`` draws the initial dummies."""
        ...
