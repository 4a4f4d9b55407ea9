"""The anchored path: a run whose steps do not wait for each other, at weights held fixed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from simudy.attack.dummy import Dummy
from simudy.attack.evidence import Evidence
from simudy.attack.first_layer.influence import FirstLayer
from simudy.attack.methods.path import (
    Grads,
    Path,
    bent,
    end_of_shares,
    end_on_path,
    new_path,
    require_sum,
)
from simudy.attack.methods.renewed import RenewedProblem
from simudy.attack.methods.simudy import Simudy
from simudy.dynamics import tree
from simudy.dynamics.adjoint import Direct, Recompute
from simudy.dynamics.gradient import Reverse
from simudy.dynamics.gradient.base import size
from simudy.dynamics.loss import ExactLoss, as_written
from simudy.dynamics.simulate import simulate
from simudy.errors import SimudyError
from simudy.ranges import COUNT, FRACTION


@dataclass
class Anchored(Simudy):
    """As ``Simudy``, with each step's gradient taken at a fixed point near the iterate that it
    would be taken at, so that no step waits for another.

    The points are those of a run simulated on the present dummies, bent to end at θf: θ̂_t +
    (t/T)(θf − θ̂_T). The rule steps on gradients at these. No derivative goes through a chain of
    steps, and so it meets less of the chaos of one. The points are simulated anew from time to
    time, and come to those of the true run as the dummies come to the true images. The last part
    of the search simulates the run itself, as ``Simudy`` does: what is returned was compared there.

    Args:
        paths: how many times the points are simulated, evenly over the search.
        nodes: how many steps are taken at each iteration, evenly spread and drawn anew with each
            path; each also stands for the change of its neighbours since the path was made. Fewer
            are faster and rougher: let ``paths`` be half of the iterations then. Default: all.
        anchored_until: after this part of the search, simulate the run itself.
        shared: each process of ``torch.distributed`` takes a share of the steps, and all find the
            same. The rule must add gradients up, as SGD does. One sum of |θ| numbers an outer step;
            the points are simulated by each.
    """

    paths: Annotated[int, COUNT] = 60
    nodes: Annotated[int | None, COUNT] = None
    anchored_until: Annotated[float, FRACTION] = 0.95
    shared: bool = False

    def fitted(self, evidence: Evidence) -> Anchored:
        return dataclasses.replace(self, gradient=self.gradient or Reverse())

    def posed(self, evidence: Evidence, dummy: Dummy, first: FirstLayer | None) -> AnchoredProblem:
        return AnchoredProblem(self, evidence, dummy, first=first)

    def held(self, evidence: Evidence, *, steps: int) -> int:
        return (1 if self.nodes is None else 2) * steps * size(evidence.initial)


class AnchoredProblem(RenewedProblem):
    """The objective of one attack along anchored paths."""

    settings: Anchored

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._require_fixed_points()

    def _require_fixed_points(self) -> None:
        s, rules = self.settings, self._rules(1.0)
        if self.evidence.checkpoints:
            raise SimudyError("Anchored() anchors a run between its two ends: use Simudy()")
        if not isinstance(s.adjoint, (Direct, Recompute)):
            raise SimudyError(
                f"Anchored() has no chain of steps for {type(s.adjoint).__name__}() to go back "
                "through: use Direct() or Recompute()"
            )
        start = self.evidence.initial
        if any(rule.second_point(start, start) is not None for rule in rules):
            raise SimudyError(
                f"Anchored() fixes where gradients are taken, and {type(rules[0]).__name__} moves "
                "on from there: use Simudy()"
            )
        if s.shared:
            if s.nodes is not None:
                raise SimudyError("Anchored(shared=True) shares all steps: set nodes=None")
            for progress in (0.0, 1.0):  # a search may clip at first
                require_sum(self._rules(progress), start)

    def renewals(self) -> tuple[int, float]:
        return self.settings.paths, self.settings.anchored_until

    def moved(self, made: Path, progress: float) -> tree.Params:
        grads, start = self._grads(progress), self.evidence.initial
        batches, rules = self.run(progress)
        ended = end_of_shares if self.settings.shared else end_on_path
        end = ended(partial(made.grad, grads), start, batches, rules, adjoint=self.settings.adjoint)
        return tree.sub(end, start)

    def make(self, progress: float) -> Path:
        (batches, rules), known = self.run(progress), self.evidence
        end, points = simulate(
            self._loss(self._sigma(progress)),
            known.initial,
            batches,
            rules,
            gradient=self.gradient,
            observe=lambda step, params, loss: params,
        )
        points = bent([known.initial, *points[:-1]], end, known.final)
        how = {"nodes": self.settings.nodes, "seed": self.number(progress) or 0}
        return new_path(points, batches, self._grads(progress), **how)

    def _grads(self, progress: float) -> Grads:
        return self.gradient.of(ExactLoss(as_written(self._loss(self._sigma(progress)))))
