"""Linear weights that are never formed: a combination of a dense weight and low-rank factors.

A linear layer's gradient on a batch is δᵀa, with a its inputs ``(rows, in)`` and δ the loss's
gradient at its outputs ``(rows, out)``. Under a rule whose iterates are combinations of gradients
(the SGD family), a weight is therefore ``c0·W0 + Σ c_j δ_jᵀa_j`` throughout the run.
``FactoredWeight`` holds exactly that and answers in that form for the algebra the rules are written
in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from simudy.dynamics import tree
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
    algebra: ClassVar[dict[Any, Callable[..., Any]]]  # what is done in factored form

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
        if (own := cls.algebra.get(func)) and (
            result := own(*args, **(kwargs or {}))
        ) is not NotImplemented:
            return result
        name = func.__name__
        if func in _METADATA or (name == "__get__" and func not in _VIEWS):  # the wrapper knows
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if name == "__set__" or name[-1] == "_" != name[-2]:
            raise SimudyError(f"a factored weight is not written to ({name}): take weight.dense()")
        return func(*formed(args), **formed(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(f"{func} needs the weight itself: pass weight.dense()")


def formed(node: Any) -> Any:
    if isinstance(node, (list, tuple)):
        return type(node)(formed(child) for child in node)
    if isinstance(node, dict):
        return {k: formed(v) for k, v in node.items()}
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
    if any(isinstance(x, Tensor) and len(x.shape) > 2 for x in (a, b)):  # added to every sample
        return NotImplemented
    if not isinstance(a, FactoredWeight):
        a = b._lift(a)
    if not isinstance(b, FactoredWeight):
        b = a._lift(b)
    return a._plus(b if alpha == 1 else b._scaled(alpha))


def _sub(a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _add(a, b, alpha=-alpha)


def _rsub(a: Any, b: Any) -> Any:
    return _sub(b, a)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if isinstance(input, FactoredWeight) or not isinstance(weight, FactoredWeight):
        return NotImplemented
    rows = input.reshape(-1, input.shape[-1])
    out = weight.linear(rows).reshape(*input.shape[:-1], weight.shape[0])
    return out if bias is None else out + bias


def _detach(a: FactoredWeight) -> FactoredWeight:
    return tree.rebuild(a, [leaf.detach() for leaf in tree.leaves(a)])


IS_DIFFERENTIATED = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
FactoredWeight.algebra = {
    **dict.fromkeys((Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul), _mul),
    **dict.fromkeys((Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add), _add),
    **dict.fromkeys((Tensor.sub, Tensor.__sub__, torch.sub), _sub),
    Tensor.__rsub__: _rsub,
    **dict.fromkeys((Tensor.neg, Tensor.__neg__, torch.neg), lambda a: a._scaled(-1.0)),
    F.linear: linear,
    Tensor.detach: _detach,
    IS_DIFFERENTIATED: lambda a: any(leaf.requires_grad for leaf in tree.leaves(a)),
}
_METADATA = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    torch.numel,
    Tensor.__len__,
    Tensor.is_floating_point,
    torch.is_floating_point,
}
_VIEWS = [  # attributes with entries
    getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "real", "data")
]
