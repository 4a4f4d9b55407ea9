"""The gradient mode that keeps linear weights as θ0 plus the low-rank gradients met so far.

A linear layer's gradient on a batch is δᵀa (see ``factored_weight``). Inside the loss a factored
weight is watched: as long as it goes into ``F.linear`` alone, a zero added to the layer's output
has δ for its gradient, and a is noted on the way. On a batch where the loss uses it in any other
way its gradient is a dense matrix like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_iter

from simudy.dynamics import tree
from simudy.dynamics.gradient.base import Gradient, Loss
from simudy.dynamics.gradient.factored_weight import (
    IS_DIFFERENTIATED,
    Dense,
    FactoredWeight,
    LowRank,
    formed,
    linear,
)
from simudy.dynamics.gradient.reverse import Reverse
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

Uses = dict[str, list[int] | None]  # rows of each F.linear that a weight goes into; None: otherwise


@dataclass(frozen=True)
class Factored(Gradient):
    """Keep the weights of linear layers as θ0 plus the low-rank gradients met so far; everything
    else stays dense.

    Exactly the same numbers as the dense modes. Memory per step and layer: rows·(in + out) instead
    of in·out. Time per step grows with the rank met so far; by default a layer is factored where
    counting operations says that it pays.

    Args:
        inner: the mode that differentiates the loss in factored form, ``Reverse()`` or ``Mixed()``.
        layers: ``"auto"`` for the layers where it is cheaper, ``"all"`` for every weight used by
            ``F.linear`` alone.

    Raises:
        SimudyError: the rule acts elementwise (Adam): its iterates are no combination of gradients.
    """

    inner: Gradient = field(default_factory=Reverse)
    layers: Literal["auto", "all"] = "auto"

    def bind(
        self, loss: Loss, params: Params, batches: Sequence[Any], rules: Sequence[Any]
    ) -> tuple[Params, Any]:
        for rule in rules:
            if not rule.spans_gradients:
                raise SimudyError(
                    f"{type(rule).__name__} acts on each weight entry alone, so its iterates are "
                    "no combination of "
                    f"gradients and cannot be factored: use gradient Mixed() or Reverse()"
                )
        names = self.chosen(loss, params, batches)
        held: Params = {k: _lifted(v) if k in names else formed(v) for k, v in params.items()}
        return held, partial(self._grads, loss, {})

    def kept(self, params: Params, activations: int) -> int:
        if all(p.dim() <= 2 for p in params.values()):
            return 2 * activations  # the weights are never written, their factors are
        return self.inner.kept(params, activations)

    def leaner(self) -> Gradient | None:
        inner = self.inner.leaner()
        return None if inner is None else replace(self, inner=inner)

    def chosen(self, loss: Loss, params: Params, batches: Sequence[Any]) -> list[str]:
        """Names of the weights that will be kept factored, by how the first batch uses them."""
        lifted = {k: _lifted(v) if v.dim() == 2 else v for k, v in params.items()}
        rows = {k: sum(uses) for k, uses in _explored(loss, lifted, batches[0]).items() if uses}
        return [
            k
            for k in rows
            if self.layers == "all"
            or isinstance(params[k], FactoredWeight)  # a run goes on as it began
            or _is_cheaper(params[k], rows[k], len(batches))
        ]

    def _grads(self, loss: Loss, usual: dict[Any, Uses], params: Params, batch: Any) -> Params:
        # A batch of the shapes of another most often uses the weights alike, but need not. What is
        # usual is settled once: a replay of this step must come to the same form.
        factored = tuple(k for k, w in params.items() if isinstance(w, FactoredWeight))
        key = factored, *(leaf.shape for leaf in tree.leaves(batch))
        if key not in usual:
            usual[key] = _explored(loss, params, batch)
        try:
            return self._by_uses(loss, usual[key], params, batch)
        except _UsedOtherwise:
            return self._by_uses(loss, _explored(loss, params, batch), params, batch)

    def _by_uses(self, loss: Loss, uses: Uses, params: Params, batch: Any) -> Params:
        rows = {k: found for k, found in uses.items() if found is not None}
        weights = {k: params[k] for k in rows}
        flat: dict[Any, Tensor] = formed({k: v for k, v in params.items() if k not in weights})
        for k, w in weights.items():
            for i, n in enumerate(rows[k]):
                flat[k, i] = torch.zeros(n, w.shape[0], dtype=w.dtype, device=w.device)
        probed = partial(_probed_loss, loss, list(params), rows)
        grads, inputs = self.inner.of(probed, has_aux=True)(flat, (weights, batch))
        found = {k: _gradient(grads, inputs, k, params[k]) for k in params}
        return {k: grad for k, grad in found.items() if grad is not None}


def _lifted(weight: Tensor) -> FactoredWeight:
    if isinstance(weight, FactoredWeight):
        return weight
    return FactoredWeight({Dense(weight): 1.0}, weight)


def _gradient(
    grads: dict[Any, Tensor], inputs: dict[str, list[Tensor]], name: str, like: Tensor
) -> Tensor | None:
    """The gradient of one parameter in the form that it is held in; None where it has none."""
    if name in grads:
        return _lifted(grads[name]) if isinstance(like, FactoredWeight) else grads[name]
    uses = [(grads[name, i], a) for i, a in enumerate(inputs.get(name, ())) if (name, i) in grads]
    return FactoredWeight({LowRank(d, a): 1.0 for d, a in uses}, like) if uses else None


def _probed_loss(
    loss: Loss,
    names: Sequence[str],
    rows: dict[str, list[int]],
    flat: dict[Any, Tensor],
    rest: tuple[Any, Any],
) -> Any:
    weights, batch = rest
    probed = {k: _watch(w, [flat[k, i] for i in range(len(rows[k]))]) for k, w in weights.items()}
    value = loss({k: probed[k] if k in probed else flat[k] for k in names}, batch)
    for w in probed.values():
        w.require(len(w.inputs) == len(w.probes or ()))
    return value, {k: w.inputs for k, w in probed.items()}


def _explored(
    loss: Loss, params: Params, batch: Any, *, otherwise: frozenset[str] = frozenset()
) -> Uses:
    """How the loss uses each factored weight on this batch, those given as dense among them."""
    given = tree.detach(params)
    factored = {k: w for k, w in given.items() if isinstance(w, FactoredWeight)}
    dense = {k: w.dense() for k, w in factored.items() if k in otherwise}
    watched = {k: _watch(w, None) for k, w in factored.items() if k not in otherwise}
    try:
        with torch.no_grad():
            loss({**given, **dense, **watched}, batch)
    except _UsedOtherwise:  # met where it could not be formed any more
        met = {k for k, w in watched.items() if w.otherwise}
        return _explored(loss, params, batch, otherwise=otherwise | met)
    return {**dict.fromkeys(dense), **{k: w.uses for k, w in watched.items()}}


class _UsedOtherwise(SimudyError):
    """A weight does not meet in the loss what it met when the loss was explored."""


class _Watched(FactoredWeight):
    """A weight inside the loss: it notes what goes through it, and adds its probes to what comes
    out. Whatever needs the weight itself is noted while the loss is explored, and refused after.
    """

    probes: list[Tensor] | None  # None: the loss is being explored
    inputs: list[Tensor]
    otherwise: bool
    whole: Tensor | None

    @property
    def uses(self) -> list[int] | None:
        return None if self.otherwise else [len(x) for x in self.inputs]

    def require(self, met: bool) -> None:
        if not met:
            raise _UsedOtherwise(
                "the loss uses a weight another way each time it is called, so that its factors "
                "cannot be told: use Reverse() or Mixed()"
            )

    def linear(self, x: Tensor) -> Tensor:
        z, i = super().linear(x), len(self.inputs)
        self.inputs.append(x.to(self.dtype))  # autocast may have rounded it
        if self.probes is None:
            return z
        self.require(i < len(self.probes) and len(self.probes[i]) == len(x))
        return z + self.probes[i].to(z.dtype)

    def dense(self) -> Tensor:
        self.require(self.probes is None)
        self.otherwise = True
        self.whole = super().dense() if self.whole is None else self.whole
        return self.whole

    def __tree_children__(self) -> list[Any]:
        return [self.dense()]

    def __tree_inner__(self, other: Tensor) -> Tensor:
        return tree.inner(self.dense(), other)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return memo.get(id(self.dense()), self.dense().clone())

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch.func has wrapped it, and stands above: too late to form it
        for weight in tree_iter(args):
            if isinstance(weight, _Watched):
                weight.otherwise = True
                weight.require(False)


# 0.5 * w inside the loss would be another weight, which nobody watches
_Watched.algebra = {F.linear: linear, IS_DIFFERENTIATED: FactoredWeight.algebra[IS_DIFFERENTIATED]}


def _watch(weight: FactoredWeight, probes: list[Tensor] | None) -> _Watched:
    watched = _Watched(weight.atoms, weight)
    watched.probes, watched.inputs, watched.otherwise, watched.whole = probes, [], False, None
    return watched


# What costs as much as so many multiply-adds, fitted to benchmarks/factored.py on a CPU:
_PASSES = 148  # a dense weight's entry, its way through memory, per step
_PRODUCTS = 3  # and its nine products by one row, which run in cache
_CALLS = 28e6  # the calls that the factors of a layer need beyond those of a dense one, per step
_WORTH = 0.84  # of it, or less: weights of width 512, which caches may hold, cost less than this


def _is_cheaper(weight: Tensor, rows: int, steps: int) -> bool:
    """Multiply-adds of a layer in one outer iteration, factored against dense.

    Factored: four products with W0 and with the factors met so far (half of them on average), the
    inner product with a dense displacement, and the Gram matrices of the norm.
    """
    out, inputs = weight.shape
    size, edge, rank = out * inputs, out + inputs, rows * steps
    dense = steps * (_PASSES + _PRODUCTS * rows) * size
    products = 4 * rank * (size + rank / 2 * edge) + 2 * rank * size
    return products + 3 * rank**2 * edge + _CALLS * steps < _WORTH * dense
