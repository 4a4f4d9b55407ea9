"""Weights known from inside a run: the attack then simulates one short segment from each to the
next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from simudy.attack.checkpoints.findings import rounded_to
from simudy.attack.checkpoints.weights import load_weights, weights_of
from simudy.dynamics import tree
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError
from simudy.tensors import plain


@dataclass(frozen=True)
class Checkpoint:
    """Known weights inside a run.

    Args:
        step: batches that the run had taken when they were saved, from 1.
        params: the iterate it had reached, by name; not an average of iterates.
        resumed: what it went on from with a fresh optimizer, where that is something else, as a
            federated server's aggregate is. Default: ``params``, and the optimizer's state carries
            on.
    """

    step: int
    params: Params
    resumed: Params | None = None

    @property
    def start(self) -> Params:
        """What the next segment begins at."""
        return self.params if self.resumed is None else self.resumed

    def mapped(self, change: Callable[[Params], Params]) -> Checkpoint:
        """The same with other weights."""
        resumed = None if self.resumed is None else change(self.resumed)
        return dataclasses.replace(self, params=change(self.params), resumed=resumed)


@dataclass(frozen=True)
class Segment:
    """The steps ``first`` to ``last`` of a run, the last excluded, between known weights.

    Attributes:
        fresh: the optimizer begins afresh; otherwise it goes on with the state that the segment
            before it was simulated to leave.
    """

    first: int
    last: int
    start: Params
    end: Params
    fresh: bool

    @property
    def steps(self) -> slice:
        """What is this segment's of a list with an entry a step."""
        return slice(self.first, self.last)

    @property
    def displacement(self) -> Params:
        """Where the run went in it."""
        return tree.sub(self.end, self.start)


def segments(
    initial: Params, checkpoints: Sequence[Checkpoint], final: Params, *, steps: int
) -> list[Segment]:
    """A run of ``steps`` steps cut at its checkpoints.

    Raises:
        SimudyError: a checkpoint lies at the run's end or beyond.
    """
    if checkpoints and checkpoints[-1].step >= steps:
        raise SimudyError(
            f"a checkpoint after {checkpoints[-1].step} steps, where the recipe has {steps}: set "
            "Checkpoint(step=…), Recipe(epochs=…, batch_size=…) to what the run had"
        )
    starts = [(0, initial, True), *((c.step, c.start, c.resumed is not None) for c in checkpoints)]
    ends = [*((c.step, c.params) for c in checkpoints), (steps, final)]
    return [
        Segment(first, last, start, end, fresh)
        for (first, start, fresh), (last, end) in zip(starts, ends, strict=True)
    ]


def require_ascending(checkpoints: Sequence[Checkpoint]) -> None:
    """Steps must be whole, from 1, each after the one before.

    Raises:
        SimudyError: they are not.
    """
    steps = [checkpoint.step for checkpoint in checkpoints]
    if any(after <= before for before, after in zip([0, *steps], steps, strict=False)):
        raise SimudyError(
            f"checkpoints after {steps} steps: set Checkpoint(step=…) to numbers from 1, "
            "ascending, one a file"
        )


def named(checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[str, Params]]:
    """Every set of weights in them, and what to call it in a message."""
    for checkpoint in checkpoints:
        yield f"the weights after step {checkpoint.step}", checkpoint.params
        if checkpoint.resumed is not None:
            yield f"the weights resumed after step {checkpoint.step}", checkpoint.resumed


def checkpoints_of(
    module: nn.Module, held: Mapping[int, Any], resumed: Mapping[int, Any], *, part: str | None
) -> tuple[Checkpoint, ...]:
    """Those that files hold.

    Args:
        module: the architecture.
        held: what ``load_weights`` gave, by the step after which it was saved.
        resumed: likewise, what the run went on from.
        part: see ``weights_of``.

    Raises:
        SimudyError: a file does not fit the module, or something was resumed where nothing is held.
    """
    if stray := sorted(resumed.keys() - held.keys()):
        raise SimudyError(f"weights resumed after step {stray[0]}: give those it had reached too")
    own = {name: parameter.dtype for name, parameter in module.named_parameters()}

    def read(what: str, loaded: Any) -> Params:
        found = weights_of(module, loaded, what=what, part=part, lenient=True).tensors
        return {name: found[name].to(kind) for name, kind in own.items()}

    return tuple(
        Checkpoint(
            step,
            read(f"the weights after step {step}", loaded),
            read(f"the weights resumed after step {step}", resumed[step])
            if step in resumed
            else None,
        )
        for step, loaded in held.items()
    )


def updated(module: nn.Module, start: Any, update: Any) -> Params:
    """``start + update``, of what two files hold: the weights after a federated client's round."""
    before = weights_of(module, start, what="the weights that an update began at").tensors
    moved = weights_of(module, update, what="an update").tensors
    names = [name for name, _ in module.named_parameters()]
    return {**before, **{name: before[name] + moved[name].to(before[name]) for name in names}}


def roundings(
    module: nn.Module, checkpoints: Sequence[Checkpoint], known: torch.dtype | None
) -> Iterator[str]:
    """A sentence on each set of weights that is rounded otherwise than the run's two ends."""
    for what, weights in named(checkpoints):
        if (kind := rounded_to(module, weights)) not in (None, known):
            yield f"{what} are rounded to {str(kind).removeprefix('torch.')}"


def evenly(count: int, steps: int) -> list[int]:
    """``count`` steps inside a run of ``steps``, evenly spaced.

    Raises:
        SimudyError: the run has fewer.

    Example:
        >>> evenly(2, 10), evenly(4, 10)
        ([3, 7], [2, 4, 6, 8])
    """
    if count >= steps:
        raise SimudyError(
            f"evenly(count={count}): a run of {steps} steps has {steps - 1} between its ends"
        )
    return [round(steps * (i + 1) / (count + 1)) for i in range(count)]


def save_checkpoints(checkpoints: Sequence[Checkpoint], folder: Path) -> None:
    """One file a set of weights, in ``folder``, called by its step."""
    for checkpoint in checkpoints:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(plain(checkpoint.params), folder / f"{checkpoint.step}.safetensors")
        if checkpoint.resumed is not None:
            save_file(plain(checkpoint.resumed), folder / f"{checkpoint.step}_resumed.safetensors")


def load_checkpoints(folder: Path, steps: Sequence[int]) -> tuple[Checkpoint, ...]:
    """What ``save_checkpoints`` wrote.

    Raises:
        SimudyError: a file is missing or damaged.
    """
    return tuple(_load(folder, step) for step in steps)


def _load(folder: Path, step: int) -> Checkpoint:
    beside = folder / f"{step}_resumed.safetensors"
    resumed = load_weights(beside) if beside.exists() else None
    return Checkpoint(step, load_weights(folder / f"{step}.safetensors"), resumed)
