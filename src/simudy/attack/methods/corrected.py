"""A stretch of the run stands for the whole, corrected for what it leaves out."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any

from simudy.attack.dummy import Dummy
from simudy.attack.evidence import Evidence
from simudy.attack.first_layer.influence import FirstLayer
from simudy.attack.methods.renewed import RenewedProblem
from simudy.attack.methods.simudy import Simudy
from simudy.dynamics import tree
from simudy.dynamics.gradient import Reverse
from simudy.dynamics.gradient.base import size
from simudy.errors import SimudyError
from simudy.ranges import COUNT, FRACTION, SHARE


@dataclass
class Corrected(Simudy):
    """As ``Simudy``, most of the search through a stretch of the run's steps alone.

    What the stretch moves the weights by, δ, stands for what the run does, Δ: Δ̂ = c·δ̂ + (Δ − c·δ)°.
    What is marked ° was simulated without a derivative on the dummies of the last correction and is
    held fixed since, as is c, the least squares fit of c·δ to Δ, and the point that the stretch
    begins at. So wherever it was just corrected the value is that of the whole run, and the true
    images are a solution, which they are not for a shorter run by itself. A step costs ``horizon``
    of one through the whole run. Each correction takes the next stretch, evenly spread over the
    run but for its end: where the loss has fallen, the weights move little, and what moves them
    there led the search away when it stood for the whole (docs/notes/2026-12-01-priors.md).

    This is defect correction by a coarse model, or space mapping with an output correction
    (Echeverría & Hemker, CMAM 5, 2005). The last part of the search simulates the run itself, as
    ``Simudy`` does: what is returned was compared there.

    Args:
        horizon: the part of the steps that is differentiated.
        corrections: how many times the whole run is simulated, evenly over the search.
        corrected_until: after this part of the search, simulate the run itself.
    """

    horizon: Annotated[float, SHARE] = 0.4
    corrections: Annotated[int, COUNT] = 30
    corrected_until: Annotated[float, FRACTION] = 0.9

    def fitted(self, evidence: Evidence) -> Corrected:
        return dataclasses.replace(self, gradient=self.gradient or Reverse())

    def posed(self, evidence: Evidence, dummy: Dummy, first: FirstLayer | None) -> CorrectedProblem:
        return CorrectedProblem(self, evidence, dummy, first=first)

    def held(self, evidence: Evidence, *, steps: int) -> int:
        return 3 * size(evidence.initial)  # where the stretch begins, a moment, and the rest


@dataclass(frozen=True)
class Correction:
    """Δ ≈ ``times``·δ + ``rest``, δ what ``stretch`` moves weights by from ``point``, ``state``."""

    stretch: slice
    point: tree.Params
    state: Any
    times: float
    rest: tree.Params


class CorrectedProblem(RenewedProblem):
    """The objective of one attack through a stretch of its run."""

    settings: Corrected

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.evidence.checkpoints:
            raise SimudyError("Corrected() shortens a run that is simulated whole: use Simudy()")

    def renewals(self) -> tuple[int, float]:
        return self.settings.corrections, self.settings.corrected_until

    def moved(self, made: Correction, progress: float) -> tree.Params:
        end, _ = self._along(progress, made.stretch, made.point, made.state)
        return tree.add(tree.scale(made.times, tree.sub(end, made.point)), made.rest)

    def make(self, progress: float) -> Correction:
        start, rules = self.evidence.initial, self._rules(progress)
        stretch = self._stretch(progress, steps=len(rules))
        point, state = self._along(progress, slice(0, stretch.start), start, None)
        end, after = self._along(progress, stretch, point, state)
        moved = tree.sub(end, point)
        end, after = self._along(progress, slice(stretch.stop, None), end, after)
        whole = tree.sub(rules[-1].final(end, after), start)
        times = float(tree.dot(moved, whole)) / self._square(moved, stretch)
        return Correction(stretch, point, state, times, tree.sub(whole, tree.scale(times, moved)))

    def _stretch(self, progress: float, *, steps: int) -> slice:
        """This correction's: of as many as cover the run, evenly spread, the next but the last."""
        length = math.ceil(self.settings.horizon * steps)
        turns = max(math.ceil(steps / length) - 1, 1)
        first = round((self.number(progress) or 0) % turns * (steps - length) / turns)
        return slice(first, first + length)

    def _along(self, progress: float, part: slice, point: tree.Params, state: Any) -> Any:
        """Where these steps lead from there: weights and state."""
        batches, rules = self.run(progress)
        if not rules[part]:
            return point, state
        return self._simulate(point, batches[part], rules[part], state, sigma=self._sigma(progress))

    def _square(self, moved: tree.Params, stretch: slice) -> float:
        square = float(tree.dot(moved, moved))
        if not square:
            raise SimudyError(
                f"Corrected(horizon={self.settings.horizon:g}): the weights do not move in steps "
                f"{stretch.start + 1} to {stretch.stop} of the run: give it more of them"
            )
        return square
