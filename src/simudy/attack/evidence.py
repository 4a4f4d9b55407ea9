"""What an attacker holds. Nothing here, or anywhere in ``attack``, may know the true images or
labels.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from simudy.attack.checkpoints.fill import Files, fill
from simudy.attack.checkpoints.findings import apply_modes, find, require_steps
from simudy.attack.checkpoints.saved_scheduler import written_out
from simudy.attack.checkpoints.segments import (
    Checkpoint,
    checkpoints_of,
    load_checkpoints,
    named,
    require_ascending,
    roundings,
    save_checkpoints,
)
from simudy.attack.checkpoints.trainer import with_moments
from simudy.attack.checkpoints.weights import load_weights, weights_of
from simudy.attack.facts import read_facts
from simudy.attack.serial import from_plain, read_recipe, to_plain
from simudy.dynamics import tree
from simudy.dynamics.model import StatelessModel
from simudy.dynamics.model.criterion import PerSample
from simudy.dynamics.optim.groups import held_still
from simudy.dynamics.recipe import Recipe
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError
from simudy.tensors import plain

_FACTS = ("shape", "classes", "n", "mean", "std", "precision", "notes", "hidden")


@dataclass(repr=False)
class Evidence:
    """The public side of a training run.

    Args:
        model: the architecture with its buffers, in the mode (train or eval) it was trained in.
        initial: parameters θ0 before training. Those that the model holds frozen
            (``requires_grad=False``) may be among them and are left out.
        final: parameters θf after it; likewise.
        recipe: how the run went, known or guessed.
        shape: ``(c, h, w)`` of one image.
        classes: number of classes.
        n: number of training images, or None if unknown.
        mean, std: per-channel normalisation of the images, in pixel units; the attack works on
            normalised images.
        precision: the type that the weights were rounded to when they were published, as
            ``"bfloat16"``, where it is coarser than their own.
        notes: what else is known; ``notes["findings"]`` are sentences about the files.
        checkpoints: weights known from inside the run, in its order.
        hidden: standard deviation, by name, of the noise that was added to the final weights, where
            that is known.

    Raises:
        SimudyError: the weights do not fit the model or each other, move what is frozen, hold NaN
            or infinity, or did not move; or checkpoints are out of order.
    """

    model: StatelessModel
    initial: Params
    final: Params
    recipe: Recipe
    shape: tuple[int, ...]
    classes: int
    n: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    precision: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    checkpoints: tuple[Checkpoint, ...] = ()
    hidden: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.initial = _without_frozen("the initial weights", self.initial, self.model)
        self.final = _without_frozen("the final weights", self.final, self.model)
        require_ascending(self.checkpoints)
        self.checkpoints = tuple(
            c.mapped(partial(_without_frozen, f"the weights after step {c.step}", model=self.model))
            for c in self.checkpoints
        )
        for what, weights in self._named_weights():
            _require_same_names_and_shapes(what, weights, self.model.params)
            _require_finite(what, weights)
        if all(torch.equal(self.initial[k], self.final[k]) for k in self.initial):
            raise SimudyError(
                "initial and final weights are the same: nothing was learned, so give two "
                "different files"
            )
        for before, after in self._segment_ends():
            if all(torch.equal(before[k], after[k]) for k in before):
                raise SimudyError(
                    "two of the checkpoints, or one and an end of the run, are the same: nothing "
                    "was learned between them, so leave one out"
                )

    def __repr__(self) -> str:
        """Three lines: what was trained on what, how, and how far it came."""
        count = sum(p.numel() for p in self.initial.values())
        size = "×".join(map(str, self.shape))
        many = "an unknown number of" if self.n is None else self.n
        moved = float(tree.norm(self.displacement))
        found = self.notes.get("findings", [])
        return (
            f"Evidence: {type(self.model.module).__name__} of {count:,} parameters, trained on "
            f"{many} images of {size} in {self.classes} classes\n"
            f"  run: {self.recipe}\n"
            f"  moved: {moved:.2e}, {moved / max(float(tree.norm(self.initial)), 1e-30):.1e} of "
            f"the initial weights; {found[-1] if found else 'nothing else is known'}"
        )

    @property
    def displacement(self) -> Params:
        """θf − θ0."""
        return tree.sub(self.final, self.initial)

    @property
    def published(self) -> torch.dtype:
        """The type that the weights were rounded to when they were published, or their own."""
        own = next(iter(self.final.values())).dtype
        return own if self.precision is None else getattr(torch, self.precision)

    def to(self, device: str | torch.device) -> Evidence:
        """The same evidence on another device."""
        move = partial(_on_device, device)
        return dataclasses.replace(
            self,
            model=self.model.to(device),
            initial=move(self.initial),
            final=move(self.final),
            checkpoints=tuple(checkpoint.mapped(move) for checkpoint in self.checkpoints),
            recipe=tree.rebuild(self.recipe, [t.to(device) for t in tree.leaves(self.recipe)]),
        )

    def save(self, folder: str | Path) -> None:
        """Write ``initial``, ``final``, ``buffers`` and ``checkpoints/`` (safetensors), and
        ``evidence.json``.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, weights in (
            ("initial", self.initial),
            ("final", self.final),
            ("buffers", self.model.buffers),
        ):
            save_file(plain(weights), folder / f"{name}.safetensors")
        facts = {
            **{k: getattr(self, k) for k in _FACTS},
            "recipe": to_plain(written_out(self.recipe, self.n), moments := {}),
            "criterion": to_plain(self.model.given_criterion),
            "training": [k for k, layer in self.model.module.named_modules() if layer.training],
            "frozen": [k for k, p in self.model.module.named_parameters() if not p.requires_grad],
        }
        if self.checkpoints:
            facts["checkpoints"] = [checkpoint.step for checkpoint in self.checkpoints]
            save_checkpoints(self.checkpoints, folder / "checkpoints")
        if moments:
            save_file(plain(moments), folder / "moments.safetensors")
        (folder / "evidence.json").write_text(json.dumps(facts, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, module: nn.Module) -> Evidence:
        """Read what ``save`` wrote; ``module`` is the architecture, whose own weights do not
        matter.

        Raises:
            SimudyError: a file is missing or damaged, or does not fit the module.
        """
        folder, module = Path(folder), copy.deepcopy(module)
        module.load_state_dict(load_weights(folder / "buffers.safetensors"), strict=False)
        facts = read_facts(folder)
        _set_modes(module, facts.pop("training"), facts.pop("frozen"))
        path = folder / "moments.safetensors"
        moments = load_weights(path) if path.exists() else {}
        recipe = read_recipe(facts.pop("recipe"), moments)
        criterion = from_plain(facts.pop("criterion"))
        weights = {k: load_weights(folder / f"{k}.safetensors") for k in ("initial", "final")}
        facts["checkpoints"] = load_checkpoints(folder / "checkpoints", facts["checkpoints"])
        model = StatelessModel(module, criterion=criterion)
        return cls(model.to(_dtype(module)), recipe=recipe, **weights, **facts)

    def _named_weights(self) -> Iterator[tuple[str, Params]]:
        yield from (("the initial weights", self.initial), *named(self.checkpoints))
        yield "the final weights", self.final

    def _segment_ends(self) -> Iterator[tuple[Params, Params]]:
        starts = [self.initial, *(checkpoint.start for checkpoint in self.checkpoints)]
        ends = [*(checkpoint.params for checkpoint in self.checkpoints), self.final]
        return zip(starts, ends, strict=True)


def evidence_from_weights(
    module: nn.Module,
    initial: Any,
    final: Any,
    *,
    recipe: Recipe,
    mode: str | None = None,
    part: str | None = None,
    loss: nn.Module | None = None,
    n: int | None = None,
    typed: Set[str] | None = None,
    checkpoints: Mapping[int, Any] | None = None,
    resumed: Mapping[int, Any] | None = None,
    **facts: Any,
) -> Evidence:
    """Evidence from what two files of weights hold (see ``load_weights``), and what they prove.

    Parameters come from both, buffers (BatchNorm statistics) from the first. Norms are put in the
    mode they trained in, parameters that did not move are frozen. Moments saved with the first are
    those that the run begins with.

    Args:
        module: the architecture; its own weights do not matter, nor does it change.
        initial: what the file before training holds, a state dict at the least.
        final: what the file after it holds.
        recipe: how the run went, known or guessed.
        mode: ``train`` or ``eval``. Default: as the files prove, else eval.
        part: where in the files the weights lie, where several parts fit; the first need not have
            it.
        loss: of ``torch.nn``. Default: cross-entropy.
        n: number of training images. Default: unknown.
        typed: which settings of the recipe somebody typed, as ``inner.lr`` or ``recipe.epochs``;
            the others are taken from saved states of the optimizer and its scheduler. Default: the
            recipe is as given.
        checkpoints: what files from inside the run hold, by the step they were saved after.
        resumed: likewise, what the run went on from after these steps, with a fresh optimizer,
            where that was something else.
        facts: ``shape``, ``classes`` and what else ``Evidence`` takes.

    Raises:
        SimudyError: the weights do not fit the module, or prove something else than is said.
    """
    module = copy.deepcopy(module)
    start = weights_of(module, initial, what="the initial weights", part=part, lenient=True)
    end = weights_of(module, final, what="the final weights", part=part)
    found = find(module, start.tensors, end.tensors)
    apply_modes(module, found, mode=mode, initial=start.tensors, final=end.tensors)
    module.load_state_dict(start.tensors, strict=False)
    still = held_still(recipe.optimizer, dict(module.named_parameters()))
    for name in set(found.frozen) - still:
        module.get_parameter(name).requires_grad_(False)
    filled: list[str] = []
    if typed is not None:
        files = Files(initial, final, n=n, batches=found.steps, typed=typed)
        recipe, filled = fill(recipe, module, files)
    require_steps(found, recipe.steps(n) if n else None)
    recipe = with_moments(recipe, module, initial, final)
    criterion = PerSample(loss).to(_dtype(module)) if loss is not None else None
    model = StatelessModel(module, criterion=criterion)
    inside = checkpoints_of(module, checkpoints or {}, resumed or {}, part=part)
    owned = list(module.named_parameters())
    told = [f"{k}: {v.origin}" for k, v in (("initial", start), ("final", end)) if v.origin]
    return Evidence(
        model,
        *({k: held.tensors[k].to(own.dtype) for k, own in owned} for held in (start, end)),
        checkpoints=inside,
        recipe=recipe,
        n=n,
        precision=None if found.rounded is None else str(found.rounded).removeprefix("torch."),
        notes={
            "findings": [
                *told,
                *found.sentences(),
                *filled,
                *roundings(module, inside, found.rounded),
            ],
            **({"filled": True} if filled else {}),
        },
        **facts,
    )


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _set_modes(module: nn.Module, training: list[str], frozen: list[str]) -> None:
    for name, layer in module.named_modules():
        layer.training = name in training
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)


def _on_device(device: str | torch.device, weights: Params) -> Params:
    return {name: tensor.to(device) for name, tensor in weights.items()}


def _without_frozen(what: str, weights: Params, model: StatelessModel) -> Params:
    """``weights`` without what the model holds beside its parameters, which must be the same."""
    for name in weights.keys() & model.buffers.keys():
        if not torch.equal(weights[name].to(model.buffers[name]), model.buffers[name]):
            raise SimudyError(
                f"{what} hold another {name!r} than the model, where it is frozen: set its "
                "requires_grad=True if it was trained, or give the files of one run"
            )
    return {name: tensor for name, tensor in weights.items() if name not in model.buffers}


def _require_same_names_and_shapes(what: str, weights: Params, expected: Params) -> None:
    if missing := sorted(expected.keys() - weights.keys()):
        raise SimudyError(
            f"{what} lack {missing[0]!r} ({len(missing)} missing in all): they are of another "
            "model than `model`"
        )
    if surplus := sorted(weights.keys() - expected.keys()):
        raise SimudyError(
            f"{what} hold {surplus[0]!r}, which the model has not: they are of another model than "
            "`model`"
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, the model's {tuple(expected[name].shape)}"
            raise SimudyError(
                f"{what}: {name!r} has shape {shapes}: set the model's sizes to the file's"
            )


def _require_finite(what: str, weights: Params) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise SimudyError(
                f"{what} hold NaN or infinity in {name!r}: training diverged, use a lower lr"
            )
