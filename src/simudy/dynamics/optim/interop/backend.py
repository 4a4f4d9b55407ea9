"""The same rule computed by another library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from simudy.dynamics.optim.adadelta import Adadelta
from simudy.dynamics.optim.adagrad import Adagrad
from simudy.dynamics.optim.adam import Adam, AdamW
from simudy.dynamics.optim.adamax import Adamax
from simudy.dynamics.optim.hyperparameters import innermost
from simudy.dynamics.optim.interop.higher import Higher
from simudy.dynamics.optim.interop.torchopt import TorchOpt
from simudy.dynamics.optim.radam import RAdam
from simudy.dynamics.optim.rmsprop import RMSprop
from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.optim.sgd import SGD
from simudy.errors import SimudyError

_HIGHER: dict[type[Rule], type[torch.optim.Optimizer]] = {
    SGD: torch.optim.SGD,
    Adam: torch.optim.Adam,
    Adamax: torch.optim.Adamax,
    RMSprop: torch.optim.RMSprop,
    Adagrad: torch.optim.Adagrad,
    Adadelta: torch.optim.Adadelta,
}
_TORCHOPT: dict[type[Rule], str] = {
    SGD: "sgd",
    Adam: "adam",
    AdamW: "adamw",
    RAdam: "radam",
    Adamax: "adamax",
    RMSprop: "rmsprop",
    Adagrad: "adagrad",
    Adadelta: "adadelta",
}
_TORCHOPT_LACKS = ("amsgrad", "decoupled_weight_decay", "maximize")  # some or all of its functions


def with_backend(rule: Rule, backend: str) -> Rule:
    """``rule`` with its innermost rules computed by ``native``, ``torchopt`` or ``higher``;
    wrappers stay ours.

    Values and hyper-gradients are those of the native rule, with these differences: TorchOpt's
    adam, adamw, adagrad and rmsprop give NaN hyper-gradients where a gradient is exactly zero; its
    bias corrections and ``lr_decay`` are computed in the default dtype, mostly float32 (1e-6
    relative); ``higher`` applies the ε of Adam before the bias correction, so that results differ
    by the order of ε/|g|. Under ``vmap`` TorchOpt has sgd and adagrad alone, ``higher`` all but
    Adadelta.

    Args:
        rule: a native rule, wrapped or not.
        backend: ``native``, ``torchopt`` or ``higher``.

    Raises:
        SimudyError: the back end has no such rule, lacks an option in use, or differentiates it
            wrongly.

    Example:
        >>> type(with_backend(SGD(lr=0.1), "torchopt")).__name__
        'TorchOpt'
    """
    backends: dict[str, Callable[[Rule], Rule]] = {"torchopt": _torchopt, "higher": _higher}
    if backend == "native":
        return rule
    if backend not in backends:
        raise SimudyError(f"backend {backend!r}: choose native, torchopt or higher")
    return innermost(backends[backend], rule)


def _torchopt(rule: Rule) -> Rule:
    import torchopt

    name = _lookup(_TORCHOPT, rule, "torchopt")
    options = _options(rule)
    _refuse_tensors(options, "torchopt", learnable=("lr",))
    for lacking in _TORCHOPT_LACKS:
        if options.get(lacking) and not (
            lacking == "maximize" and name not in ("radam", "adamax", "adadelta")
        ):
            raise SimudyError(
                f"torchopt.{name} cannot do {lacking}={options[lacking]}: use the native rule"
            )
    kept = {key: value for key, value in options.items() if value or key not in _TORCHOPT_LACKS}
    factory = getattr(torchopt, name)
    try:
        factory(**kept)
    except ValueError as error:  # e.g. Nesterov with dampening
        raise SimudyError(f"torchopt.{name} refuses: {error}; use the native rule") from error
    return TorchOpt(factory, kept)


def _higher(rule: Rule) -> Rule:
    optimizer = _lookup(_HIGHER, rule, "higher")
    options = _options(rule)
    learnable = (
        ("lr", "momentum", "dampening", "weight_decay") if isinstance(rule, SGD) else ("lr",)
    )
    _refuse_tensors(options, "higher", learnable=learnable)
    return Higher(optimizer, options)


def _lookup(table: dict[type[Rule], Any], rule: Rule, backend: str) -> Any:
    if type(rule) not in table:
        known = ", ".join(kind.__name__ for kind in table)
        raise SimudyError(
            f"{backend} has no {type(rule).__name__} (it has {known}): use the native rule"
        )
    return table[type(rule)]


def _options(rule: Any) -> dict[str, Any]:
    """The fields of a rule, as ``torch.optim`` names them."""
    options = {f.name: getattr(rule, f.name) for f in fields(rule)}
    if "beta1" in options:
        options["betas"] = (options.pop("beta1"), options.pop("beta2"))
    return options


def _refuse_tensors(options: dict[str, Any], backend: str, *, learnable: tuple[str, ...]) -> None:
    for name, value in options.items():
        tensors = [
            v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Tensor)
        ]
        if tensors and name not in learnable:
            raise SimudyError(
                f"{backend} has no gradient for {name}: give a number, or use the native rule"
            )
