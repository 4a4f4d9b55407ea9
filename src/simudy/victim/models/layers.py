"""Layers that are chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import gcd
from typing import TypeVar

from torch import nn

from simudy.errors import SimudyError

T = TypeVar("T")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,  # not in place: in-place would spoil what double backward has saved
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(gcd(8, channels), channels),
    "none": lambda channels: nn.Identity(),
}


def activation_named(name: str) -> nn.Module:
    """A new activation. SimudyError for a name that is not in ACTIVATIONS."""
    return lookup("activation", name, ACTIVATIONS)()


def norm_named(name: str, channels: int) -> nn.Module:
    """A new normalisation of (n, channels, h, w). SimudyError for a name that is not in NORMS."""
    return lookup("norm", name, NORMS)(channels)


def lookup(option: str, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        raise SimudyError(f"no {option} called '{name}': choose from {', '.join(table)}")
    return table[name]
