"""What the weight of a layer multiplies: the patches of a convolution, the tokens of a linear
layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simudy.attack.evidence import Evidence
from simudy.dynamics.model.operations import exact_operations
from simudy.dynamics.tree import Params


@dataclass(frozen=True)
class Layer:
    """A layer whose displacement is a sum of products δ pᵀ, p being what it multiplies.

    Attributes:
        name: of its module.
        groups: of a convolution; 1 elsewhere.
        out, size: the shape of a group's weight, flattened: ``(out, size)``.
        spots: vectors p that one image brings.
    """

    name: str
    groups: int
    out: int
    size: int
    spots: int

    @property
    def weight(self) -> str:
        """The name of its parameter."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def capacity(self) -> int:
        """The highest rank that a group's displacement can have."""
        return min(self.out, self.size)


class Probe:
    """The network at some weights, asked what its layers see.

    Norms that trained in train mode mix the images of a batch. Here they normalise by the
    statistics of ``public`` images, so that what is seen of an image hangs on that image alone.

    Args:
        evidence: the model and its buffers; its weights do not matter.
        params: the weights.
        public: normalised images ``(m, c, h, w)``, neither candidates nor reference. Without norms
            in train mode they are not looked at.
    """

    def __init__(self, evidence: Evidence, params: Params, public: Tensor | None) -> None:
        self.module = copy.deepcopy(evidence.model.module)
        self.weights = {**evidence.model.buffers, **params}
        mixing = [layer for layer in self.module.modules() if mixes(layer)]
        if mixing and public is not None:
            self._settle(mixing, public)

    def layers(self, images: Tensor) -> list[Layer]:
        """Those that can be asked, in the order in which they are called.

        Args:
            images: any few ``(n, c, h, w)``.
        """
        asked = {name: layer for name, layer in self.module.named_modules() if _askable(layer)}
        found = self._seen(asked, images)
        return [_describe(name, asked[name], seen) for name, seen in found.items()]

    def vectors(self, layer: Layer, images: Tensor) -> Tensor:
        """What ``layer`` multiplies, ``(n, groups, spots, size)``."""
        module = self.module.get_submodule(layer.name)
        return self._seen({layer.name: module}, images)[layer.name]

    @torch.no_grad()
    def _seen(self, asked: dict[str, nn.Module], images: Tensor) -> dict[str, Tensor]:
        seen: dict[str, list[Tensor]] = {}

        def record(name: str) -> Any:
            def hook(layer: nn.Module, args: Any) -> None:
                if len(args[0]) == len(images):  # else it mixes images and tokens in one dimension
                    seen.setdefault(name, []).append(unfold(layer, args[0]))

            return hook

        with _hooks(layer.register_forward_pre_hook(record(k)) for k, layer in asked.items()):
            self(images)
        return {name: torch.cat(parts, 2) for name, parts in seen.items()}  # a shared layer: all

    def __call__(self, images: Tensor) -> Tensor:
        """Logits."""
        with exact_operations():
            return torch.func.functional_call(self.module, self.weights, (images.contiguous(),))

    @torch.no_grad()
    def _settle(self, mixing: Sequence[nn.Module], public: Tensor) -> None:
        """Freeze norms at the statistics of ``public``, as they see them one after the other."""
        found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def measure(layer: Any, args: Any) -> None:
            over = [i for i in range(args[0].ndim) if i != 1]
            found[layer] = (args[0].mean(over), args[0].var(over, correction=0))

        with _hooks(layer.register_forward_pre_hook(measure) for layer in mixing):
            self(public)
        for name, layer in self.module.named_modules():
            if layer in found:
                keys = (f"{name}.running_mean".lstrip("."), f"{name}.running_var".lstrip("."))
                layer.running_mean, layer.running_var = found[layer]  # type: ignore[assignment]
                layer.eval()
                self.weights.update(zip(keys, found[layer], strict=True))  # type: ignore[arg-type]


def mixes(layer: nn.Module) -> bool:
    """Whether what it gives for an image hangs on the others of its batch."""
    return isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)


def unfold(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs of a layer as the vectors ``(n, groups, spots, size)`` that its weight multiplies."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(len(inputs), 1, -1, inputs.shape[-1])
    assert isinstance(layer, nn.Conv2d)
    if layer.padding_mode != "zeros":
        inputs = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
    padded = layer.padding_mode != "zeros"
    padding = (0, 0) if padded else _padding(layer)
    if isinstance(padding, list):  # "same" pads one side more where the kernel is even
        inputs, padding = F.pad(inputs, padding), (0, 0)
    patches = F.unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
    return patches.unflatten(1, (layer.groups, -1)).transpose(2, 3)


def _padding(layer: nn.Conv2d) -> Any:
    if layer.padding == "valid":
        return (0, 0)
    return layer._reversed_padding_repeated_twice if layer.padding == "same" else layer.padding


def _askable(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Conv2d, nn.Linear)) and not hasattr(layer, "parametrizations")


def _describe(name: str, layer: Any, seen: Tensor) -> Layer:
    _, groups, spots, size = seen.shape
    return Layer(name, groups, len(layer.weight) // groups, size, spots)


@contextmanager
def _hooks(handles: Any) -> Iterator[None]:
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
