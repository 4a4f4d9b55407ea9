"""What every method of attack gives the outer loop: variables, an objective and the images they
stand for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from simudy.attack.evidence import Evidence
from simudy.dynamics import tree
from simudy.dynamics.adjoint import Adjoint
from simudy.dynamics.gradient import Gradient
from simudy.dynamics.recipe import Recipe


class Problem:
    """Base of the problems: minimise an objective over the variables, leaf tensors of autograd."""

    def variables(self) -> dict[str, Tensor]:
        """The leaves to move, by name; the outer optimizer gives each a parameter group."""
        raise NotImplementedError

    @torch.no_grad()
    def stand_at(self, values: dict[str, Tensor]) -> None:
        """Move the variables to ``values``, by name; names beyond theirs are passed over."""
        for name, leaf in self.variables().items():
            leaf.copy_(values[name])

    @contextmanager
    def standing_at(self, values: dict[str, Tensor]) -> Iterator[None]:
        """The variables at ``values``, and back where they were at the end."""
        present = tree.map(torch.clone, tree.detach(self.variables()))
        self.stand_at(values)
        try:
            yield
        finally:
            self.stand_at(present)

    def objective(self, progress: float) -> tuple[Tensor, Tensor]:
        """``(objective, distance)``, scalars, at ``progress`` in [0, 1) through the iterations."""
        raise NotImplementedError

    def stage(self, progress: float) -> object:
        """What the objective means at this point: only objectives of one stage are compared.
        Default: one for all.
        """
        return None

    def images(self) -> Tensor:
        """Normalised images ``(m, c, h, w)`` at the present variables."""
        raise NotImplementedError

    def labels(self) -> Tensor:
        """Class indices ``(m,)``, or probabilities ``(m, classes)``."""
        raise NotImplementedError

    def restore(self, images: Tensor, labels: Tensor, learned: dict[str, Tensor]) -> None:
        """Stand where an earlier search ended.

        Args:
            images: normalised ``(m, c, h, w)``.
            labels: class indices ``(m,)`` or probabilities ``(m, classes)``.
            learned: factors on learned hyper-parameters, by name.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What the objective depends on besides the variables and ``progress``: tensors and
        numbers. Default: nothing.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned; the variables keep their values."""

    def notes(self) -> list[str]:
        """What a person may want to know of it before it starts. Default: nothing."""
        return []

    def precondition(self) -> None:
        """Called between the backward pass and the outer optimizer's step: may rescale the leaves'
        gradients.
        """

    def refined(self, *, damping: float) -> dict[str, Tensor] | None:
        """What a step without derivatives makes of the variables it moves; shorter with
        ``damping``. Default: none.
        """
        return None


class Method:
    """Base of the ways to attack: dataclasses of settings that build the problem.

    Attributes:
        recipe: the run it simulates, where that is not the evidence's. None: that one, or no run.
        gradient: how its gradients are differentiated. None: it has none, or ``fitted`` chooses.
        adjoint: how its simulated run is differentiated. None: it simulates no run.
    """

    recipe: Recipe | None = None
    gradient: Gradient | None = None
    adjoint: Adjoint | None = None

    def problem(self, evidence: Evidence, *, seed: int) -> Problem:
        """The problem for this evidence; ``seed`` draws the initial dummies."""
        raise NotImplementedError

    def held(self, evidence: Evidence, *, steps: int) -> int:
        """Bytes kept from one outer step to the next, besides the variables. Default: none."""
        return 0

    def fitted(self, evidence: Evidence) -> Method:
        """With what is left open chosen by the evidence. Default: nothing is."""
        return self
