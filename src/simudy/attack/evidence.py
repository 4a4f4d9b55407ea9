"""What an attacker holds. Nothing here, or anywhere in ``attack``, may know the true images or
labels.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from simudy.attack.facts import read_facts
from simudy.attack.serial import read_recipe, to_plain
from simudy.dynamics import tree
from simudy.dynamics.model import StatelessModel
from simudy.dynamics.recipe import Recipe
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


@dataclass
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

    Raises:
        SimudyError: the weights do not fit the model or each other, move what is frozen, hold NaN
            or infinity, or did not move.
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
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.initial = _without_frozen("the initial weights", self.initial, self.model)
        self.final = _without_frozen("the final weights", self.final, self.model)
        _require_same_names_and_shapes("the initial weights", self.initial, self.model.params)
        _require_same_names_and_shapes("the final weights", self.final, self.model.params)
        _require_finite("initial", self.initial)
        _require_finite("final", self.final)
        if all(torch.equal(self.initial[k], self.final[k]) for k in self.initial):
            raise SimudyError(
                "initial and final weights are the same: nothing was learned, so give two "
                "different files"
            )

    @property
    def displacement(self) -> Params:
        """θf − θ0."""
        return tree.sub(self.final, self.initial)

    def to(self, device: str | torch.device) -> Evidence:
        """The same evidence on another device."""
        move = {
            k: {n: t.to(device) for n, t in getattr(self, k).items()} for k in ("initial", "final")
        }
        return dataclasses.replace(self, model=self.model.to(device), **move)

    def save(self, folder: str | Path) -> None:
        """Write ``initial``, ``final`` and ``buffers`` (safetensors) and ``evidence.json``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, weights in (
            ("initial", self.initial),
            ("final", self.final),
            ("buffers", self.model.buffers),
        ):
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in weights.items()},
                folder / f"{name}.safetensors",
            )
        facts = {k: getattr(self, k) for k in ("shape", "classes", "n", "mean", "std", "notes")}
        (folder / "evidence.json").write_text(
            json.dumps({**facts, "recipe": to_plain(self.recipe)}, indent=2) + "\n"
        )

    @classmethod
    def load(
        cls, folder: str | Path, module: nn.Module, *, trusted: Collection[str] = ()
    ) -> Evidence:
        """Read what ``save`` wrote; ``module`` is the architecture, whose own weights do not
        matter.

        Args:
            trusted: dotted names of rules, beside simudy's own, that the file may have imported.

        Raises:
            SimudyError: a file is missing or damaged, or does not fit the module.
        """
        folder = Path(folder)
        module.load_state_dict(load_weights(folder / "buffers.safetensors"), strict=False)
        facts = read_facts(folder)
        weights = {k: load_weights(folder / f"{k}.safetensors") for k in ("initial", "final")}
        return cls(
            StatelessModel(module),
            recipe=read_recipe(facts.pop("recipe"), trusted=trusted),
            **weights,
            **facts,
        )


def load_weights(path: str | Path) -> Params:
    """Tensors by name from a ``.safetensors`` file, or a ``.pt``/``.pth`` file read with
    ``weights_only=True``.

    A training checkpoint that holds the weights under ``state_dict``, ``model_state_dict`` or
    ``model`` is opened too.

    Raises:
        SimudyError: no such file, or not a file of weights.
    """
    path = Path(path)
    if not path.exists():
        raise SimudyError(f"no weights at {path}: give an existing .safetensors or .pt file")
    try:
        loaded = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, UnpicklingError) as error:
        raise SimudyError(
            f"cannot read weights from {path} ({_first_line(error)}): save a state_dict again"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(v, torch.Tensor) for v in loaded.values()
    ):
        raise SimudyError(
            f"{path} holds no dict of tensors: save it with torch.save(model.state_dict(), path)"
        )
    return loaded


def evidence_from_weights(
    module: nn.Module, initial: Params, final: Params, **facts: Any
) -> Evidence:
    """Evidence from two state dicts of ``module``: parameters from both, buffers (BatchNorm
    statistics) and frozen parameters from the first.

    Args:
        facts: ``recipe``, ``shape``, ``classes`` and what else ``Evidence`` takes.
    """
    names: Params = dict(module.named_parameters())
    _require_same_names_and_shapes(
        "the initial weights", {k: v for k, v in initial.items() if k in names}, names
    )
    frozen = {k for k, p in module.named_parameters() if not p.requires_grad}
    kept = {k: v for k, v in initial.items() if k not in names or k in frozen}
    module.load_state_dict(kept, strict=False)
    start, end = (
        {k: v.to(names[k].dtype) for k, v in w.items() if k in names} for w in (initial, final)
    )
    return Evidence(StatelessModel(module), start, end, **facts)


def _without_frozen(what: str, weights: Params, model: StatelessModel) -> Params:
    """``weights`` without what the model holds beside its parameters, which must be the same."""
    for name in weights.keys() & model.buffers.keys():
        if not torch.equal(weights[name].to(model.buffers[name]), model.buffers[name]):
            raise SimudyError(
                f"{what} hold another {name!r} than the model, where it is frozen: set its "
                "requires_grad=True if it was trained, or give the files of one run"
            )
    return {name: tensor for name, tensor in weights.items() if name not in model.buffers}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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


def _require_finite(which: str, weights: Params) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise SimudyError(
                f"the {which} weights hold NaN or infinity in {name!r}: training diverged, use a "
                "lower lr"
            )
