"""Convolutions of rounded factors, for processors that do these in half the time."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
# Of fewer channels they gain nothing; and torch's CPU build has written out of bounds there.
_FEW = 8


class RoundedConvolutions(TorchFunctionMode):
    """While it is on, convolutions multiply factors rounded to bfloat16 (8 significant bits), and
    so do their derivatives; sums are float32, rounded once.

    Those of few channels, in groups or of other types than float32 stay as they are.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _CONVOLUTIONS or not _worth_it(*args, **kwargs):
            return func(*args, **kwargs)
        return _rounded(func, *args, **kwargs)


def _worth_it(input: Any, weight: Any, *rest: Any, groups: int = 1, **kwargs: Any) -> bool:
    groups = rest[4] if len(rest) > 4 else groups
    return input.dtype == torch.float32 and groups == 1 and weight.shape[1] >= _FEW


def _rounded(
    func: Any, input: Any, weight: Any, bias: Any = None, *rest: Any, **kwargs: Any
) -> Any:
    product = func(input.bfloat16(), weight.bfloat16(), None, *rest, **kwargs).float()
    shape = (-1, *(1 for _ in weight.shape[2:]))
    return product if bias is None else product + bias.reshape(shape)
