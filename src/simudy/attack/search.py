"""The outer loop: any torch optimizer over the dummies, best so far kept, resumable bit for bit."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from simudy.attack.evidence import Evidence
from simudy.attack.methods.problem import Method, Problem
from simudy.attack.methods.simudy import Simudy
from simudy.dynamics import tree
from simudy.errors import SimudyError
from simudy.outcome import Reconstruction
from simudy.progress import progress_bar
from simudy.ranges import COUNT, DECAY, NOT_NEGATIVE, NUMBER_OF, POSITIVE

PATIENCE = 10  # refused steps in a row before the search is called diverged
_DAMPING = 0.03  # of refining steps, at first
_BOLDER = 0.3  # times, after a step that helped
_SHORTER = 10.0  # times, after one that did not


@dataclass
class Outer:
    """How the dummies are moved.

    Args:
        lr: step size.
        iterations: outer steps.
        optimizer: ``(parameter groups, lr=…) -> torch optimizer``; closures (L-BFGS) are served.
        schedule: ``(optimizer) -> torch scheduler``. Default: one cosine decay over the iterations.
        tolerance: stop as converged when the distance is at or below it.
        lrs: step sizes of single variables by name (``latent``, ``labels``, ``log_lr``) that differ
            from ``lr``.
        average: decay of a running mean of the variables, 0 for none. A network with kinks leaves
            the iterates jittering about the solution; where the mean ends with a lower objective
            than the best iterate, it is the result.
        refine: at most this many steps at the end that need no derivative, where the method has
            such (``simudy`` in the span: see ``FirstLayer``), each kept if it lowers the objective.
    """

    lr: Annotated[float, POSITIVE] = 0.1
    iterations: Annotated[int, COUNT] = 300
    optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, betas=(0.8, 0.9))  # noqa: RUF009
    schedule: Callable[..., Any] | None = None
    tolerance: Annotated[float, NOT_NEGATIVE] = 0.0
    lrs: dict[str, Annotated[float, POSITIVE]] = field(default_factory=dict)
    average: Annotated[float, DECAY] = 0.0
    refine: Annotated[int, NUMBER_OF] = 10


class Search:
    """An outer loop in progress. ``state_dict`` and ``load_state_dict`` make it resumable, bit for
    bit on CPU.

    Nothing in a step waits for the device: what was measured stays there until ``read`` fetches it,
    every step on CPU and every tenth elsewhere.
    """

    def __init__(self, problem: Problem, outer: Outer) -> None:
        self.problem, self.outer = problem, outer
        self.variables = problem.variables()
        self.optimizer = outer.optimizer(_groups(self.variables, outer.lrs), lr=outer.lr)
        self.scheduler = (outer.schedule or partial(CosineAnnealingLR, T_max=outer.iterations))(
            self.optimizer
        )
        self.iteration = 0
        self.refined = 0
        self.refused = 0
        self.seconds = 0.0
        self.damping = _DAMPING
        self.history: list[dict[str, float]] = []
        device = next(iter(self.variables.values())).device
        self.best = {
            **tree.map(torch.clone, tree.detach(self.variables)),
            **_scores(float("inf"), device),
        }
        self.mean = tree.map(torch.clone, tree.detach(self.variables))
        self._unread: list[Tensor] = []
        self._read_every = 1 if device.type == "cpu" else 10

    def step(self) -> None:
        """One outer step. Where the objective or a gradient is not finite, the variables stay as
        they are.
        """
        start, before = time.perf_counter(), tree.map(torch.clone, tree.detach(self.variables))
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.optimizer.step(partial(self._closure, seen))  # type: ignore[arg-type]
        self.scheduler.step()
        objective, distance, finite = seen[0]
        if self._stage(self.iteration + 1) != self._stage(self.iteration):
            self.best |= _scores(
                float("inf"), objective.device
            )  # what was best by another measure is not any more
        with torch.no_grad():
            for name, leaf in self.variables.items():
                leaf.copy_(torch.where(finite, leaf, before[name]))
            better = finite & (objective < self.best["objective"])
            now = {**before, "objective": objective, "distance": distance}
            self.best = {k: torch.where(better, now[k], old) for k, old in self.best.items()}
            self.mean = {
                k: torch.lerp(leaf, self.mean[k], self.outer.average)
                for k, leaf in self.variables.items()
            }
        self.iteration += 1
        self._unread.append(torch.stack([objective, distance, finite.to(objective)]))
        if self.iteration % self._read_every == 0 or self.iteration == self.outer.iterations:
            self._read()
        self.seconds += time.perf_counter() - start

    def run(self, *, on_step: Callable[[Search], None] | None = None) -> Reconstruction:
        """Step until the search ends, and return the best iterate; see ``reconstruct``."""
        try:
            for _ in self.steps():
                if on_step is not None:
                    on_step(self)
        except KeyboardInterrupt:
            return self.result("interrupted")
        return self.result(self.status)

    def steps(self) -> Iterator[None]:
        """All that is left to do, a step at a time."""
        while self.status == "running":
            self.step()
            yield
        if self.outer.average:
            self._consider(self.mean)
        if self.status != "diverged":
            yield from self.refine()

    @property
    def status(self) -> str:
        """``running`` until the search ends; then ``converged``, ``diverged`` or ``finished``."""
        if self.refused >= PATIENCE or (self._is_over() and not self._has_moved()):
            return "diverged"
        near = self.history and self.history[-1]["distance"] <= self.outer.tolerance
        if near and self._stage(self.iteration) == self._stage(self.outer.iterations):
            return "converged"
        return "finished" if self._is_over() else "running"

    def _is_over(self) -> bool:
        return self.iteration >= self.outer.iterations

    def _has_moved(self) -> bool:
        """Whether any step was finite: what none was, no search has touched."""
        return any(math.isfinite(row["objective"]) for row in self.history)

    def result(self, status: str) -> Reconstruction:
        """The best so far; before the first finite step, the initial dummies."""
        with self.problem.standing_at(
            self.best
        ):  # copies, for in pixels the images are the variables
            images, labels = (
                t.detach().clone() for t in (self.problem.images(), self.problem.labels())
            )
        learned = {k[4:]: self.best[k].exp().item() for k in self.variables if k.startswith("log_")}
        return Reconstruction(
            images,
            labels,
            status,
            objective=self.best["objective"].item(),
            distance=self.best["distance"].item(),
            learned=learned,
            iterations=self.iteration,
            seconds=self.seconds,
            history=self.history,
        )

    def refine(self) -> Iterator[None]:
        """Steps from the best that need no derivative, by Levenberg and Marquardt's rule for their
        length.
        """
        while self.refined < self.outer.refine and self.damping <= 1:
            start = time.perf_counter()
            with self.problem.standing_at(self.best):
                moved = self.problem.refined(damping=self.damping)
            if moved is None:
                return
            self.damping *= _BOLDER if self._consider({**self.best, **moved}) else _SHORTER
            self.refined += 1
            self.seconds += time.perf_counter() - start
            yield

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on: tensors, numbers and strings."""
        torch_state = {k: getattr(self, k).state_dict() for k in ("optimizer", "scheduler")}
        return {
            **torch_state,
            "variables": tree.detach(self.variables),
            "problem": self.problem.state_dict(),
            **{k: getattr(self, k) for k in _CARRIED},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self.problem.stand_at(state["variables"])
        self.problem.load_state_dict(state["problem"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for name in _CARRIED:
            setattr(self, name, state[name])

    def _closure(self, seen: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        self.optimizer.zero_grad()
        objective, distance = self.problem.objective(self._progress(self.iteration + 1))
        objective.backward()
        self.problem.precondition()
        grads = [leaf.grad for leaf in self.variables.values() if leaf.grad is not None]
        finite = torch.stack([torch.isfinite(t).all() for t in (objective, *grads)]).all()
        for grad in grads:  # a poisoned gradient would live on in the optimizer's moments
            grad.copy_(torch.where(finite, grad, 0.0))
        seen.append((objective.detach(), distance.detach(), finite))
        return objective.detach()

    @torch.no_grad()
    def _consider(self, values: dict[str, Tensor]) -> bool:
        """Take ``values`` as the best, if they are."""
        with self.problem.standing_at(values):
            objective, distance = self.problem.objective(self._progress(self.outer.iterations))
        if better := bool(objective < self.best["objective"]):
            self.best = {**values, "objective": objective, "distance": distance}
        return better

    def _stage(self, iteration: int) -> object:
        """What the objective of this iteration, counted from 1, means."""
        return self.problem.stage(self._progress(iteration))

    def _progress(self, iteration: int) -> float:
        """How far this iteration, counted from 1, is through them all."""
        return max(iteration - 1, 0) / self.outer.iterations

    def _read(self) -> None:
        """Fetch what was measured since the last time."""
        rows = torch.stack(self._unread).tolist()
        for i, (objective, distance, finite) in enumerate(
            rows, start=self.iteration - len(rows) + 1
        ):
            self.refused = 0 if finite else self.refused + 1
            self.history.append(
                {
                    "iteration": i,
                    "objective": objective,
                    "distance": distance,
                    "seconds": round(self.seconds, 3),
                }
            )
        self._unread = []


_CARRIED = (
    "iteration",
    "refined",
    "damping",
    "refused",
    "seconds",
    "history",
    "best",
    "mean",
    "_unread",
)


def reconstruct(
    evidence: Evidence,
    *,
    method: Method | None = None,
    outer: Outer | None = None,
    seed: int = 0,
    resume: dict[str, Any] | None = None,
    on_step: Callable[[Search], None] | None = None,
    progress: bool | None = None,
) -> Reconstruction:
    """Reconstruct the training images behind ``evidence``.

    Args:
        evidence: what the attacker holds.
        method: how. Default: ``Simudy()``.
        outer: the outer loop's settings.
        seed: draws the initial dummies and labels.
        resume: a ``Search.state_dict()`` to go on from; the other arguments must be those it was
            made with.
        on_step: called after every step with the search, to report, save or score.
        progress: show a bar. Default: in a terminal, or in a notebook.

    Returns:
        The best iterate. Ctrl-C returns it too, with status ``interrupted``.

    Raises:
        SimudyError: a setting is unknown, or does not fit the evidence.
    """
    search = Search((method or Simudy()).problem(evidence, seed=seed), outer or Outer())
    if resume is not None:
        search.load_state_dict(resume)
    total, begun = search.outer.iterations, search.iteration
    with progress_bar(total, begun=begun, shown=progress) as told:

        def after(search: Search) -> None:
            if search.history:
                told(search.iteration, search.history[-1]["distance"])
            if on_step is not None:
                on_step(search)

        found = search.run(on_step=after)
    return dataclasses.replace(found, mean=evidence.mean, std=evidence.std)


def _groups(variables: dict[str, Tensor], lrs: dict[str, float]) -> list[Any]:
    """One parameter group per variable where step sizes differ; L-BFGS wants a plain list."""
    if unknown := lrs.keys() - variables.keys():
        raise SimudyError(
            f"Outer(lrs=…) names {sorted(unknown)[0]!r}, but the variables are "
            f"{', '.join(variables)}"
        )
    if not lrs:
        return list(variables.values())
    return [
        {"params": [leaf], **({"lr": lrs[name]} if name in lrs else {})}
        for name, leaf in variables.items()
    ]


def _scores(value: float, device: torch.device) -> dict[str, Tensor]:
    return {k: torch.full((), value, device=device) for k in ("objective", "distance")}
