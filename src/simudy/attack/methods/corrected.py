"""The first steps of a run stand for the whole, corrected for what they leave out."""

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
    """As ``Simudy``, most of the search through the first steps of the run alone.

    Where these go, Δ̂k, stands for where the run goes: Δ̂ = c·Δ̂k + (Δ̂T − c·Δ̂k)°. What is marked °
    is simulated without a derivative from time to time and held fixed between, as is c, the least
    squares fit of c·Δ̂k to Δ̂T. So the value is that of the whole run wherever it was just corrected,
    and the true images are a solution, as they are not for a shorter run by itself. A step costs
    ``horizon`` of one through the whole run. This is defect correction by a coarse model, or space
    mapping with an output correction (Echeverría & Hemker, CMAM 5, 2005). The last part of the
    search simulates the run itself, as ``Simudy`` does: what is returned was compared there.

    Args:
        horizon: the part of the steps that is differentiated.
        corrections: how many times the whole run is simulated, evenly over the search.
        corrected_until: after this part of the search, simulate the run itself.
    """

    horizon: Annotated[float, SHARE] = 0.4
    corrections: Annotated[int, COUNT] = 20
    corrected_until: Annotated[float, FRACTION] = 0.9

    def fitted(self, evidence: Evidence) -> Corrected:
        return dataclasses.replace(self, gradient=self.gradient or Reverse())

    def posed(self, evidence: Evidence, dummy: Dummy, first: FirstLayer | None) -> CorrectedProblem:
        return CorrectedProblem(self, evidence, dummy, first=first)

    def held(self, evidence: Evidence, *, steps: int) -> int:
        return size(evidence.initial)


@dataclass(frozen=True)
class Correction:
    """Δ̂T ≈ ``times``·Δ̂k + ``rest``."""

    times: float
    rest: tree.Params


class CorrectedProblem(RenewedProblem):
    """The objective of one attack through the first steps of its run."""

    settings: Corrected

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.evidence.checkpoints:
            raise SimudyError("Corrected() shortens a run that is simulated whole: use Simudy()")
        if self.factored:
            raise SimudyError("Corrected() holds weights whole, not factored: use Reverse()")

    def renewals(self) -> tuple[int, float]:
        return self.settings.corrections, self.settings.corrected_until

    def displacements(self, progress: float = 1.0) -> list[tree.Params]:
        if self.number(progress) is None:
            return super().displacements(progress)
        correction: Correction = self.present(progress)
        first, _ = self._parts(progress, whole=False)
        return [tree.add(tree.scale(correction.times, first), correction.rest)]

    def make(self, progress: float) -> Correction:
        first, whole = self._parts(progress, whole=True)
        square = float(tree.dot(first, first))
        if not square:
            raise SimudyError(
                f"Corrected(horizon={self.settings.horizon:g}): the weights do not move in these "
                "first steps of the run: give it more of them"
            )
        times = float(tree.dot(first, whole)) / square
        return Correction(times, tree.sub(whole, tree.scale(times, first)))

    def _parts(self, progress: float, *, whole: bool) -> tuple[tree.Params, tree.Params]:
        """How far the first steps go, and all."""
        (batches, rules), start = self.run(progress), self.evidence.initial
        k, sigma = math.ceil(self.settings.horizon * len(rules)), self._sigma(progress)
        end, state = self._simulate(start, batches[:k], rules[:k], None, sigma=sigma)
        first = tree.sub(rules[k - 1].final(end, state), start)
        if whole and k < len(rules):
            end, state = self._simulate(end, batches[k:], rules[k:], state, sigma=sigma)
        return first, tree.sub(rules[-1].final(end, state), start)
