"""What two files of weights prove about the run between them, beyond the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from simudy.attack.checkpoints.quantised import grid_step
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

# what files are rounded to, coarsest first
_PUBLISHED = (torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float32)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Findings:
    """Facts, and the sentences that tell them.

    Attributes:
        frozen: parameters that are the same, bit for bit, in both files.
        training: norms that trained in train mode, by name; None where nothing tells.
        resting: norms that are proven to have rested in eval mode.
        steps: batches that the norms in train mode saw between the files.
        rounded: the type the files were rounded to, where it is coarser than the model's.
        own_buffers: buffers that the files lack, norms' statistics apart.
    """

    frozen: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    resting: tuple[str, ...] = ()
    steps: int | None = None
    rounded: torch.dtype | None = None
    own_buffers: tuple[str, ...] = ()

    def sentences(self) -> Iterator[str]:
        """One line each."""
        if self.training:
            seen = f" for {self.steps} batches" if self.steps is not None else ""
            yield f"{_named('norm', self.training)} trained in train mode{seen}"
        if self.resting:
            yield f"{_named('norm', self.resting)} rested in eval mode"
        if self.frozen:
            yield f"{_named('parameter', self.frozen)} did not move: frozen"
        if self.rounded is not None:
            kind = _short(self.rounded)
            yield f"the weights are rounded to {kind}" + ", dequantised" * (kind == "int8")
        if self.own_buffers:
            yield f"{_named('buffer', self.own_buffers)} not in the files: the model's own"


def find(module: nn.Module, initial: Params, final: Params) -> Findings:
    """Read them off the tensors that ``weights_of`` found in the two files.

    Raises:
        SimudyError: a running variance is negative or not finite, or the norms of one network
            counted different numbers of batches.
    """
    _require_statistics(module, initial)
    norms = [name for name, layer in module.named_modules() if isinstance(layer, _NormBase)]
    seen = {name: _seen(name, initial, final) for name in norms}
    steps = {count for count in seen.values() if count}
    counted = steps - {-1}
    if len(counted) > 1:
        raise SimudyError(
            f"the norms counted {' and '.join(map(str, sorted(counted)))} batches between the "
            "files: they were switched during the run, which a simulation does not follow"
        )
    rounded = rounded_to(module, initial, final) or _quantised(module, final)
    return Findings(
        frozen=() if rounded else _unmoved(module, initial, final),
        training=tuple(name for name in norms if seen[name]),
        resting=tuple(name for name in norms if seen[name] == 0),
        steps=next(iter(counted), None),
        rounded=rounded,
        own_buffers=_absent_buffers(module, initial),
    )


def _seen(name: str, initial: Params, final: Params) -> int | None:
    """Batches that a norm saw in train mode: -1 where its statistics moved uncounted, None where
    the files do not tell.
    """
    keys = [f"{name}.{k}" if name else k for k in _STATISTICS]
    if any(key not in held for key in keys[:2] for held in (initial, final)):
        return None
    if all(keys[2] in held for held in (initial, final)) and bool(
        final[keys[2]] > initial[keys[2]]
    ):
        return int(final[keys[2]] - initial[keys[2]])
    moved = any(not torch.equal(initial[key], final[key]) for key in keys[:2])
    return -1 if moved else 0


def _unmoved(module: nn.Module, initial: Params, final: Params) -> tuple[str, ...]:
    names = [name for name, _ in module.named_parameters()]
    return tuple(name for name in names if torch.equal(initial[name], final[name]))


def rounded_to(module: nn.Module, *files: Params) -> torch.dtype | None:
    """The coarsest type that holds every parameter of the files exactly; None: the model's own."""
    tensors = [held[name] for name, _ in module.named_parameters() for held in files]
    own = next(iter(module.parameters())).dtype
    coarser = [kind for kind in _PUBLISHED if torch.finfo(kind).eps > torch.finfo(own).eps]
    return next((k for k in coarser if all(torch.equal(t.to(k).to(t), t) for t in tensors)), None)


def _quantised(module: nn.Module, final: Params) -> torch.dtype | None:
    """Whether every matrix of the published file lies on the levels of int8."""
    matrices = [final[k] for k, p in module.named_parameters() if p.ndim > 1]
    on_grid = matrices and all(grid_step(matrix) is not None for matrix in matrices)
    return torch.int8 if on_grid else None


def _absent_buffers(module: nn.Module, initial: Params) -> tuple[str, ...]:
    own = module.state_dict().keys() - {name for name, _ in module.named_parameters()}
    buffers = {name for name, _ in module.named_buffers()} & own
    statistics = {name for name in buffers if name.rpartition(".")[2] in _STATISTICS}
    return tuple(sorted(buffers - statistics - initial.keys()))


def _require_statistics(module: nn.Module, weights: Params) -> None:
    for name, buffer in module.named_buffers():
        held = weights.get(name)
        if held is None or not buffer.is_floating_point():
            continue
        if not torch.isfinite(held).all():
            raise SimudyError(f"the initial weights hold NaN or infinity in {name!r}")
        if name.rpartition(".")[2] == "running_var" and bool((held < 0).any()):
            raise SimudyError(
                f"the initial weights hold a negative variance in {name!r}: save the state_dict "
                "again"
            )


def apply_modes(
    module: nn.Module, found: Findings, *, mode: str | None, initial: Params, final: Params
) -> None:
    """Put ``module`` in the mode that it trained in.

    Args:
        mode: ``train`` or ``eval``, as a person says; None: as the files prove, else eval.

    Raises:
        SimudyError: the files prove something else, lack the statistics that eval mode needs, or
            hold buffers that moved in a way no simulation follows.
    """
    if mode == "eval" and found.training:
        raise SimudyError(
            f"the statistics of {_named('norm', found.training)} moved between the files: it "
            "trained in train mode, so set evidence_from_weights(mode='train'), or leave it out"
        )
    if mode == "train" and found.resting and not found.training:
        raise SimudyError(
            f"the statistics of {_named('norm', found.resting)} stood still between the files: it "
            "trained in eval mode, so set evidence_from_weights(mode='eval'), or leave it out"
        )
    if mode is None and not found.training:
        _require_sure(module)
    module.train(mode == "train" or bool(found.training))
    for name in found.resting:
        module.get_submodule(name).eval()
    _require_needed(module, initial)
    _require_still(module, initial, final)


def _require_sure(module: nn.Module) -> None:
    """Nothing in the files tells of dropout."""
    for name, layer in module.named_modules():
        if isinstance(layer, _DropoutNd) and layer.p > 0:
            raise SimudyError(
                f"layer {name!r} ({type(layer).__name__}) drops units at random while it trains, "
                "so that the run cannot be simulated: set evidence_from_weights(mode='eval') if "
                "the run had it off, or its rate to 0"
            )


def _require_needed(module: nn.Module, initial: Params) -> None:
    """A norm in eval mode needs the statistics it trained with."""
    for name, layer in module.named_modules():
        if isinstance(layer, _NormBase) and not layer.training and layer.running_mean is not None:
            for key in (f"{name}.{k}".lstrip(".") for k in _STATISTICS[:2]):
                if key not in initial:
                    raise SimudyError(
                        f"the initial weights lack {key!r}, which a norm in eval mode divides by: "
                        "save the whole state_dict, or set evidence_from_weights(mode='train')"
                    )


def _require_still(module: nn.Module, initial: Params, final: Params) -> None:
    """Other buffers than statistics take part in the run at one value."""
    for name, buffer in module.named_buffers():
        pair = [held.get(name) for held in (initial, final)]
        if not buffer.is_floating_point() or name.rpartition(".")[2] in _STATISTICS:
            continue
        if pair[0] is not None and pair[1] is not None and not torch.equal(pair[0], pair[1]):
            raise SimudyError(
                f"the buffer {name!r} differs between the files, and a simulation holds it still: "
                "store the value that the run used in both"
            )


def require_steps(found: Findings, steps: int | None) -> None:
    """The number of batches that the norms counted must be that of the recipe.

    Raises:
        SimudyError: it is another.
    """
    if found.steps is not None and steps is not None and found.steps != steps:
        raise SimudyError(
            f"the norms counted {found.steps} batches between the files, the recipe has {steps}: "
            "set Recipe(epochs=…, batch_size=…) and Evidence(n=…) to what the run had"
        )


def rounding_variance(weights: Tensor, kind: torch.dtype) -> Tensor:
    """Of what rounding to ``kind`` changed of each weight: uniform within half a spacing."""
    return spacing(weights, kind).square() / 12


def spacing(weights: Tensor, kind: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of ``kind`` around each weight; of int8, between
    the levels that a matrix lies on, or of its own type where it lies on none.
    """
    if not kind.is_floating_point:
        if (step := grid_step(weights)) is not None:
            return step.expand(weights.shape)
        kind = weights.dtype
    _, exponent = torch.frexp(weights.double().abs())
    unit, smallest = torch.finfo(kind).eps, torch.finfo(kind).smallest_normal
    return (unit * torch.exp2((exponent - 1).double())).clamp(min=smallest * unit)


def _named(kind: str, names: tuple[str, ...]) -> str:
    """``norm '1'``, or ``3 norms ('1', …)``."""
    if len(names) == 1:
        return f"{kind} {names[0]!r}"
    return f"{len(names)} {kind}s ({names[0]!r}, …)"


def _short(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
