"""The derivative of where a run converges to, without the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from simudy.dynamics import tree
from simudy.dynamics.adjoint import Adjoint, Direct, Step, constant
from simudy.dynamics.custom_vjp import (
    LOST,
    custom_vjp,
    is_followed,
    is_forward_mode,
    is_under_vmap,
)
from simudy.dynamics.gradient.factored_weight import formed
from simudy.dynamics.linear_solvers import SOLVERS
from simudy.dynamics.optim.groups import held_still
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError
from simudy.ranges import COUNT, POSITIVE

Slope = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]]  # ∇ℓ by (θ, the rest)

Product = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Implicit(Adjoint):
    """The end of a run that has converged, differentiated by what makes it one: ∇ℓ(θ*, z) = 0.

    dθ* = −H⁻¹ ∂z∇ℓ dz with H = ∂²ℓ/∂θ², and no step is gone back through: the memory is that of one
    step, however many there were. Exact where θ* is; off by the order of ‖H⁻¹∇ℓ‖ where that is not
    zero yet, and refused above ``stationary``. z is the batch, the same in every step, and what
    does not train; derivatives by it of any order in reverse mode. θ0, the state and the rule's
    numbers have no part in θ* and receive nothing: a weight decay belongs into the loss. θ* has to
    be isolated (H invertible), as a strongly convex loss has it.

    Time of the backward pass: a product with H per iteration, each about a gradient; as much once
    more to measure the way that is left.

    Args:
        solver: of H w = v: ``cg`` or ``neumann``, which is slower, for a minimum; ``gmres`` for any
            stationary point, which keeps a θ per iteration.
        tolerance: of its residual, ‖v − H w‖ / ‖v‖.
        iterations: it may take.
        stationary: largest ‖∇ℓ(θ*)‖ that counts as converged.
        near: largest way that is left, ‖H⁻¹∇ℓ‖, relative to ‖θ*‖ or the way so far: whatever the
            scale of the loss.

    Raises:
        SimudyError: the run, or the solver, has not converged; batches differ between the steps; a
            derivative by a number of the rule, of more than the end, or in forward mode is asked
            for.

    Reference: Lorraine et al., arXiv:1911.02590; Rajeswaran et al., arXiv:1909.04630.
    """

    solver: Literal["cg", "neumann", "gmres"] = "cg"
    tolerance: Annotated[float, POSITIVE] = 1e-6
    iterations: Annotated[int, COUNT] = 200
    stationary: Annotated[float, POSITIVE] = 1e-5
    near: Annotated[float, POSITIVE] = 1e-3

    end_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise SimudyError(f"Implicit(solver={self.solver!r}): choose {', '.join(SOLVERS)}")

    def fold(self, step: Step, carry: Any, xs: Sequence[Any]) -> tuple[Any, list[Any]]:
        _require_one_problem(carry, xs)
        with torch.no_grad():
            (end, state), outs = Direct().fold(step, *constant((carry, list(xs))))
        if any(out is not None for out in outs):
            raise SimudyError(
                "Implicit() differentiates the end of a run, not what is observed on its way: "
                "leave observe out, or use Recompute()"
            )
        return (self._solved(cast("Any", step).grads, carry[0], formed(end), xs[-1]), state), outs

    def kept(self, steps: int, *, per_step: int, params: int) -> int:
        return per_step + params * (self.iterations if self.solver == "gmres" else 4)

    def _solved(self, grads: Any, start: Params, end: Params, x: Any) -> Params:
        """``end`` as a function of the batch and of what does not train."""
        _, batch, rule = x
        still = held_still(rule, start)
        met = grads(end, constant(batch))
        names = [name for name in end if name in met and name not in still]
        self._require_end(tree.norm({name: met[name] for name in names}), met)
        rest = formed({name: start[name] for name in end if name not in names}), batch

        def slope(thetas: Sequence[Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
            others, batch = tree.rebuild(rest, leaves)
            params = {**others, **dict(zip(names, thetas, strict=True))}
            found = grads({name: params[name] for name in end}, batch)
            return tuple(found[name] for name in names)

        thetas = [end[name].detach() for name in names]
        if any(map(is_followed, tree.leaves(rest))):  # a derivative may be asked for
            ways = _flat(thetas), _flat(thetas) - _flat([formed(start)[n].detach() for n in names])
            product = _hessian(slope, thetas, constant(tree.leaves(rest)))
            left = _flat(self._solve(product, [met[name].detach() for name in names])).norm()
            self._require_near(float(left), max(float(way.norm()) for way in ways))
        roots = self._root(slope, thetas, tree.leaves(rest))
        return {**end, **rest[0], **dict(zip(names, roots, strict=True))}

    def _require_end(self, size: Tensor, met: Params) -> None:
        if any(grad.requires_grad for grad in met.values()):
            raise SimudyError(LOST)
        if not float(size) <= self.stationary:
            raise SimudyError(
                f"the run has not converged: its last gradient has norm {float(size):.1e}, above "
                f"Implicit(stationary={self.stationary:.0e}): give it more steps, put a weight "
                "decay into the loss, raise stationary if the loss is large, or use Recompute()"
            )

    def _require_near(self, left: float, size: float) -> None:
        if not left <= self.near * size:
            raise SimudyError(
                f"the run has not converged: θ is still {left:.1e} from where the loss is least, "
                f"of {size:.1e}, above Implicit(near={self.near:.0e}): give it more steps, or use "
                "Recompute()"
            )

    def _root(
        self, slope: Slope, thetas: Sequence[Tensor], leaves: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """``thetas``, which solve ``slope(·, leaves) = 0``."""

        def pullback(
            leaves: Sequence[Tensor], needed: Sequence[bool], v: Sequence[Tensor]
        ) -> list[Tensor | None]:
            roots = self._root(slope, thetas, leaves)  # again, for a second derivative
            solution = self._solution(slope, roots, leaves, v)
            wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
            by = partial(_filled, slope, roots, leaves, needed)
            pull = torch.func.vjp(by, *wanted)[1]
            return tree.fill([None] * len(leaves), needed, pull(tuple(-w for w in solution)))

        return custom_vjp(lambda _: tuple(t.clone() for t in thetas), pullback, leaves)

    def _solution(
        self,
        slope: Slope,
        roots: Sequence[Tensor],
        leaves: Sequence[Tensor],
        v: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """w with H w = v."""
        ends = len(roots), len(roots) + len(leaves)

        def apart(given: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
            return given[: ends[0]], given[ends[0] : ends[1]], given[ends[1] :]

        def value(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
            roots, leaves, v = apart(given)
            _refuse_vmap()
            return self._solve(_hessian(slope, roots, leaves), v)

        def pullback(
            given: Sequence[Tensor], needed: Sequence[bool], u: Sequence[Tensor]
        ) -> list[Tensor | None]:
            roots, leaves, v = apart(given)
            y, w = (self._solution(slope, roots, leaves, vector) for vector in (u, v))

            def off(*wanted: Tensor) -> Tensor:  # ⟨y, v − H w⟩, with y and w held
                roots, leaves, v = apart(tree.fill(given, needed, wanted))
                return _flat(y) @ (_flat(v) - _flat(_hessian(slope, roots, leaves)(w)))

            wanted = [leaf for leaf, need in zip(given, needed, strict=True) if need]
            products = torch.func.grad(off, argnums=tuple(range(len(wanted))))(*wanted)
            return tree.fill([None] * len(given), needed, products)

        return custom_vjp(value, pullback, [*roots, *leaves, *v])

    def _solve(self, product: Product, v: Sequence[Tensor]) -> tuple[Tensor, ...]:
        shapes, target = [t.shape for t in v], _flat(v)
        if not target.any():
            return tuple(torch.zeros_like(t) for t in v)

        def apply(flat: Tensor) -> Tensor:
            return _flat(product(_shaped(flat, shapes)))

        w = SOLVERS[self.solver](apply, target, self.tolerance, self.iterations)
        off = float((target - apply(w)).norm() / target.norm())
        if not off <= 2 * self.tolerance:  # it stops by a residual that it has kept account of
            raise SimudyError(
                f"{self.solver} has not converged: a residual of {off:.1e} after at most "
                f"{self.iterations} iterations, where Implicit(tolerance={self.tolerance:.0e}) is "
                "due: raise iterations or tolerance, try solver='gmres' or float64, or use "
                "Recompute()"
            )
        return _shaped(w, shapes)


def _require_one_problem(carry: Any, xs: Sequence[Any]) -> None:
    """That there is one θ* to speak of, and nothing asked of it that is not answered."""
    if is_forward_mode((carry, list(xs))):
        raise SimudyError("Implicit() has no forward mode: use grad and jacrev, or Recompute()")
    _refuse_vmap()
    batches = {tuple(map(id, tree.leaves(batch))) for _, batch, _ in xs}
    if len(batches) > 1:
        raise SimudyError(
            "Implicit() needs one loss to be least at the end, and these batches differ: give the "
            "same tensors in each step, as in [batch] * steps, or use Recompute()"
        )
    if any(is_followed(leaf) for _, _, rule in xs for leaf in tree.leaves(rule)):
        raise SimudyError(
            "Implicit() knows where a run ends, not the rule that went there: detach() the rule's "
            "numbers and put a weight decay that is learned into the loss, or use Recompute()"
        )
    if any(p.is_complex() for p in carry[0].values()):
        raise SimudyError("Implicit() is for real parameters: use Recompute()")


def _refuse_vmap() -> None:
    if is_under_vmap():
        raise SimudyError(
            "Implicit() stops where the numbers say so, which vmap does not allow: take one run "
            "after the other, and jacrev(…, chunk_size=1)"
        )


def _filled(
    slope: Slope,
    roots: Sequence[Tensor],
    leaves: Sequence[Tensor],
    needed: Sequence[bool],
    *wanted: Tensor,
) -> tuple[Tensor, ...]:
    return slope(roots, tree.fill(leaves, needed, wanted))


def _hessian(slope: Slope, roots: Sequence[Tensor], leaves: Sequence[Tensor]) -> Product:
    """w ↦ H w, which is the pullback of ∇ℓ, for H is symmetric."""
    return torch.func.vjp(lambda *roots: slope(roots, leaves), *roots)[1]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _shaped(flat: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    parts = flat.split([shape.numel() for shape in shapes])
    return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
