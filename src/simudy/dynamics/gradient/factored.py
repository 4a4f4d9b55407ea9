"""Linear weights that are never formed: θ0 plus the low-rank gradients met so far.

A linear layer's gradient on a batch is δᵀa, with a its inputs ``(rows, in)`` and δ the loss's
gradient at its outputs ``(rows, out)``. Under a rule whose iterates are combinations of gradients
(the SGD family), a weight is therefore ``c0·W0 + Σ c_j δ_jᵀa_j`` throughout the run.
``FactoredWeight`` holds exactly that and answers in that form for the algebra the rules are written
in; ``Factored`` is the gradient mode that produces it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simudy.dynamics import tree
from simudy.dynamics.gradient.base import Gradient, Loss
from simudy.dynamics.gradient.reverse import Reverse
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

if TYPE_CHECKING:
    from typing_extensions import Self

Coefficient = float | Tensor


@dataclass(eq=False)
class Dense:
    """An atom: a weight ``(out, in)`` that is kept as it is."""

    weight: Tensor


@dataclass(eq=False)
class LowRank:
    """An atom: ``leftᵀ right``, with ``left (rows, out)`` and ``right (rows, in)``."""

    left: Tensor
    right: Tensor


class FactoredWeight(Tensor):
    """A linear combination of atoms that stands in for an ``(out, in)`` weight.

    ``+``, ``−``, scalar ``·``, inner products and ``F.linear`` keep the factored form; any other
    operation first forms the weight (``dense()``).
    """

    atoms: dict[Dense | LowRank, Coefficient]

    def __new__(cls, atoms: dict[Dense | LowRank, Coefficient], like: Tensor) -> Self:
        self = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, dtype=like.dtype, device=like.device
        )
        self.atoms = atoms
        return self

    def __init__(self, atoms: dict[Dense | LowRank, Coefficient], like: Tensor) -> None:
        pass

    def __tree_children__(self) -> list[Any]:
        return [*self.atoms, *self.atoms.values()]

    def __deepcopy__(self, memo: dict[int, Any]) -> FactoredWeight:
        return self._with(
            {copy.deepcopy(atom, memo): copy.deepcopy(c, memo) for atom, c in self.atoms.items()}
        )

    def __tree_inner__(self, other: Tensor) -> Tensor:
        """⟨self, other⟩ through Gram matrices; a dense ``other`` costs one product with it per
        row.
        """
        if not isinstance(other, FactoredWeight):
            other = FactoredWeight({Dense(other): 1.0}, other)
        pairs = [
            c * d * _atom_inner(a, b)
            for a, c in self._merged()
            for b, d in other._merged()
            if _nonzero(c) and _nonzero(d)
        ]
        return (
            torch.stack(pairs).sum()
            if pairs
            else torch.zeros((), dtype=self.dtype, device=self.device)
        )

    def dense(self) -> Tensor:
        """The weight ``(out, in)`` itself."""
        parts = [
            c * (a.weight if isinstance(a, Dense) else a.left.mT @ a.right)
            for a, c in self._merged()
            if _nonzero(c)
        ]
        return (
            sum(parts[1:], parts[0])
            if parts
            else torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        )

    def linear(self, x: Tensor) -> Tensor:
        """``x @ weightᵀ`` for ``x (rows, in)``, without forming the weight."""
        parts = [
            c * (x @ a.weight.mT if isinstance(a, Dense) else (x @ a.right.mT) @ a.left)
            for a, c in self._merged()
            if _nonzero(c)
        ]
        return sum(parts[1:], parts[0])

    def _merged(self) -> list[tuple[Dense | LowRank, Coefficient]]:
        """The atoms, all outer products stacked into one whose left side carries the
        coefficients.
        """
        outers = {a: c for a, c in self.atoms.items() if isinstance(a, LowRank)}
        dense = [(a, c) for a, c in self.atoms.items() if isinstance(a, Dense)]
        if len(outers) < 2:
            return [*dense, *outers.items()]
        left = torch.cat([c * a.left for a, c in outers.items()])
        return [*dense, (LowRank(left, torch.cat([a.right for a in outers])), 1.0)]

    def _with(self, atoms: dict[Dense | LowRank, Coefficient]) -> FactoredWeight:
        return FactoredWeight(atoms, self)

    def _scaled(self, factor: Coefficient) -> FactoredWeight:
        return self._with({atom: factor * c for atom, c in self.atoms.items()})

    def _plus(self, other: FactoredWeight) -> FactoredWeight:
        total = dict(self.atoms)
        for atom, c in other.atoms.items():
            total[atom] = total[atom] + c if atom in total else c
        return self._with(total)

    def _lift(self, other: Any) -> FactoredWeight:
        """A dense summand as an atom: the one already here if it is the same tensor, so that W − W0
        cancels.
        """
        own = (a for a in self.atoms if isinstance(a, Dense) and a.weight is other)
        return FactoredWeight({next(own, None) or Dense(self._broadcast(other)): 1.0}, self)

    def _broadcast(self, other: Any) -> Tensor:
        return torch.as_tensor(other, dtype=self.dtype, device=self.device).expand(self.shape)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (own := _ALGEBRA.get(func)) and (
            result := own(*args, **(kwargs or {}))
        ) is not NotImplemented:
            return result
        if (
            func.__name__ == "__get__" and func not in _VIEWS
        ):  # shape, dtype, device: the wrapper knows
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return func(*_formed(args), **_formed(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(f"{func} needs the weight itself: pass weight.dense()")


class _Probed(FactoredWeight):
    """A weight inside the loss that adds a zero probe to its output (δ is the gradient there) and
    notes its input.
    """

    probes: list[Tensor] | None
    inputs: list[Tensor]

    def linear(self, x: Tensor) -> Tensor:
        self.inputs.append(x)
        z = super().linear(x)
        return z if self.probes is None else z + self.probes[len(self.inputs) - 1]


def _formed(node: Any) -> Any:
    if isinstance(node, (list, tuple)):
        return type(node)(_formed(child) for child in node)
    if isinstance(node, dict):
        return {k: _formed(v) for k, v in node.items()}
    return node.dense() if isinstance(node, FactoredWeight) else node


def _nonzero(c: Coefficient) -> bool:
    return isinstance(c, Tensor) or c != 0.0


def _atom_inner(a: Dense | LowRank, b: Dense | LowRank) -> Tensor:
    if isinstance(a, Dense) and isinstance(b, Dense):
        return torch.dot(a.weight.reshape(-1), b.weight.reshape(-1))
    if isinstance(a, Dense):
        return _atom_inner(b, a)
    if isinstance(b, Dense):
        return ((a.right @ b.weight.mT) * a.left).sum()
    return ((a.left @ b.left.mT) * (a.right @ b.right.mT)).sum()


def _is_scalar(x: Any) -> bool:
    return isinstance(x, (int, float)) or (
        isinstance(x, Tensor) and not isinstance(x, FactoredWeight) and x.dim() == 0
    )


def _mul(a: Any, b: Any) -> Any:
    if _is_scalar(b):
        return a._scaled(b)
    return b._scaled(a) if _is_scalar(a) else NotImplemented


def _add(a: Any, b: Any, *, alpha: float = 1) -> Any:
    if not isinstance(a, FactoredWeight):
        a = b._lift(a)
    if not isinstance(b, FactoredWeight):
        b = a._lift(b)
    return a._plus(b if alpha == 1 else b._scaled(alpha))


def _sub(a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _add(a, b, alpha=-alpha)


def _rsub(a: Any, b: Any) -> Any:
    return _sub(b, a)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if isinstance(x, FactoredWeight) or not isinstance(weight, FactoredWeight):
        return NotImplemented
    out = weight.linear(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], weight.shape[0])
    return out if bias is None else out + bias


def _detach(a: FactoredWeight) -> FactoredWeight:
    return tree.rebuild(a, [leaf.detach() for leaf in tree.leaves(a)])


_ALGEBRA: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul), _mul),
    **dict.fromkeys((Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add), _add),
    **dict.fromkeys((Tensor.sub, Tensor.__sub__, torch.sub), _sub),
    Tensor.__rsub__: _rsub,
    **dict.fromkeys((Tensor.neg, Tensor.__neg__, torch.neg), lambda a: a._scaled(-1.0)),
    F.linear: _linear,
    Tensor.detach: _detach,
    Tensor.requires_grad.__get__: lambda a: any(leaf.requires_grad for leaf in tree.leaves(a)),  # type: ignore[attr-defined]
}
_VIEWS = [
    getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "real", "data")
]  # attributes with entries


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
    layers: str = "auto"

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
        lifted = {
            k: FactoredWeight({Dense(v): 1.0}, v) if k in names else v for k, v in params.items()
        }
        return lifted, partial(self._grads, loss, {})

    def kept(self, params: Params, activations: int) -> int:
        if all(p.dim() <= 2 for p in params.values()):
            return 2 * activations  # the weights are never written, their factors are
        return self.inner.kept(params, activations)

    def leaner(self) -> Gradient | None:
        inner = self.inner.leaner()
        return None if inner is None else replace(self, inner=inner)

    def chosen(self, loss: Loss, params: Params, batches: Sequence[Any]) -> list[str]:
        """Names of the weights that will be kept factored."""
        inputs = _inputs_by_weight(loss, params, batches[0])
        rows = {name: sum(x.shape[0] for x in xs) for name, xs in inputs.items()}
        return [
            k for k in rows if self.layers == "all" or _is_cheaper(params[k], rows[k], len(batches))
        ]

    def _grads(self, loss: Loss, shapes: dict[Any, Any], params: Params, batch: Any) -> Params:
        dense = {k: v for k, v in params.items() if not isinstance(v, FactoredWeight)}
        weights = {k: v for k, v in params.items() if isinstance(v, FactoredWeight)}
        probes = _zero_probes(loss, shapes, dense, weights, batch)
        probed = partial(_probed_loss, loss, {k: len(p) for k, p in probes.items()})
        flat = {(k, i): p for k, ps in probes.items() for i, p in enumerate(ps)}
        grads, inputs = self.inner.of(probed, has_aux=True)({**dense, **flat}, (weights, batch))  # type: ignore[dict-item]
        used = {key if isinstance(key, str) else key[0] for key in grads}
        return {
            k: _outer(grads, inputs, k, params[k]) if k in weights else grads[k]
            for k in params
            if k in used
        }


def _outer(
    grads: dict[Any, Tensor], inputs: dict[str, list[Tensor]], name: str, like: Tensor
) -> FactoredWeight:
    uses = [(grads[name, i], a) for i, a in enumerate(inputs[name]) if (name, i) in grads]
    return FactoredWeight({LowRank(d, a): 1.0 for d, a in uses}, like)


def _probed_loss(
    loss: Loss, uses: dict[str, int], flat: dict[Any, Tensor], rest: tuple[Any, Any]
) -> Any:
    weights, batch = rest
    probed = {k: _probe(w, [flat[k, i] for i in range(uses[k])]) for k, w in weights.items()}
    dense = {k: v for k, v in flat.items() if isinstance(k, str)}
    return loss({**dense, **probed}, batch), {k: w.inputs for k, w in probed.items()}


def _probe(weight: FactoredWeight, probes: list[Tensor] | None) -> _Probed:
    probed = _Probed(weight.atoms, weight)
    probed.probes, probed.inputs = probes, []
    return probed


def _zero_probes(
    loss: Loss,
    shapes: dict[Any, Any],
    dense: Params,
    weights: dict[str, FactoredWeight],
    batch: Any,
) -> dict[str, list[Tensor]]:
    """A zero for every use of every factored weight, shaped as the layer's output rows; looked up
    per batch shape.
    """
    key = tuple(leaf.shape for leaf in tree.leaves(batch))
    if key not in shapes:
        probed = {k: _probe(w, None) for k, w in weights.items()}
        with torch.no_grad():
            loss({**dense, **probed}, batch)
        shapes[key] = {k: [len(x) for x in w.inputs] for k, w in probed.items()}
    return {
        k: [
            torch.zeros(rows, weights[k].shape[0], dtype=weights[k].dtype, device=weights[k].device)
            for rows in uses
        ]
        for k, uses in shapes[key].items()
    }


def _inputs_by_weight(loss: Loss, params: Params, batch: Any) -> dict[str, list[Tensor]]:
    """The inputs of every matrix that the loss uses through ``F.linear`` and in no other way."""
    spies = {k: _Spy({Dense(v): 1.0}, v) for k, v in params.items() if v.dim() == 2}
    for spy in spies.values():
        spy.probes, spy.inputs, spy.formed = None, [], False
    with torch.no_grad():
        loss({**params, **spies}, batch)
    return {k: spy.inputs for k, spy in spies.items() if spy.inputs and not spy.formed}


class _Spy(_Probed):
    """Notes whether anything but ``F.linear`` needed the weight."""

    formed: bool

    def dense(self) -> Tensor:
        self.formed = True
        return super().dense()


_PASSES = 90  # what moving a dense weight's entry through memory costs per step, in multiply-adds


def _is_cheaper(weight: Tensor, rows: int, steps: int) -> bool:
    """Multiply-adds of a layer in one outer iteration, factored against dense.

    Dense: three products for the gradient and six for its derivative, and the weight's way through
    memory. Factored: four products with W0 and with the factors met so far (half of them on
    average), the inner product with a dense displacement, and the Gram matrices of the norm.
    """
    out, inputs = weight.shape
    size, edge, rank = out * inputs, out + inputs, rows * steps
    dense = steps * (9 * rows + _PASSES) * size
    return 4 * rank * (size + rank / 2 * edge) + 2 * rank * size + 3 * rank**2 * edge < dense
