"""What stands still for a part of a search, and is then made anew where the dummies have come."""

from __future__ import annotations

from typing import Any

import torch

from simudy.attack.methods.simudy import SimudyProblem
from simudy.dynamics import tree
from simudy.dynamics.optim import Rule
from simudy.errors import SimudyError


class RenewedProblem(SimudyProblem):
    """A simulated run beside something that was made of it, on the dummies as they were then.

    Each making begins a stage. In the last part of the search nothing is made, and the run itself
    is simulated.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.factored:
            name = type(self.settings).__name__
            raise SimudyError(f"{name}() holds weights whole, not factored: use Reverse()")
        self._made: Any = None
        self._stage: object = None
        self._where: dict[str, Any] = {}  # it was made: progress and variables

    def renewals(self) -> tuple[int, float]:
        """How many there would be in the whole search, and after which part of it none is."""
        raise NotImplementedError

    def make(self, progress: float) -> Any:
        """What stands still from here on, of the present dummies; without derivatives."""
        raise NotImplementedError

    def moved(self, made: Any, progress: float) -> tree.Params:
        """How far the weights go, by what was made and the present dummies."""
        raise NotImplementedError

    def displacements(self, progress: float = 1.0) -> list[tree.Params]:
        if self.number(progress) is None:
            return super().displacements(progress)
        return [self.moved(self.present(progress), progress)]

    def number(self, progress: float) -> int | None:
        """Which making it is; None: the run itself."""
        times, until = self.renewals()
        return int(progress * times) if progress < until else None

    def stage(self, progress: float) -> object:
        return super().stage(progress), self.number(progress)

    def present(self, progress: float) -> Any:
        """What was made as this stage began."""
        stage = self.stage(progress)
        if self._made is None or self._stage != stage:
            variables = tree.map(torch.clone, tree.detach(self.variables()))
            self._where = {"progress": progress, "variables": variables}
            with torch.no_grad():
                self._made, self._stage = self.make(progress), stage
        return self._made

    def run(self, progress: float) -> tuple[list[Any], list[Rule]]:
        """Batches and rules, one a step."""
        rules = self._rules(progress)
        return self.dummy.batches(self.recipe)[: len(rules)], rules

    def state_dict(self) -> dict[str, Any]:
        return dict(self._where)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """It is made again, where it was."""
        if not state:
            return
        self._made = None
        with self.standing_at(state["variables"]):
            self.present(state["progress"])
