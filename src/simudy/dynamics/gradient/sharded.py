"""One gradient on many processes: each takes a share of the batch, and the shares are summed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from simudy.dynamics import tree
from simudy.dynamics.custom_vjp import unwrapped
from simudy.dynamics.gradient.base import Gradient, Loss
from simudy.dynamics.gradient.collective import Summed, place, same, summed
from simudy.dynamics.gradient.reverse import Reverse
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError


@dataclass(frozen=True)
class Sharded(Gradient):
    """``inner`` on this process's rows of the batch, summed over all processes of
    ``torch.distributed``.

    Every process calls ``simulate`` with the same arguments, whole batches included, and gets the
    same result and the same derivatives. Process r of R computes rows r, r + R, …: whatever has as
    many rows as the first tensor of the batch is cut, the rest is given to all. A share may be
    uneven, or empty.

    The parameters go in as they are, and what comes back along them is summed; the gradients are
    summed, and what comes back along them goes on as it is. Each of these two is the derivative of
    the other, of any order and in forward mode. One all-reduce of |θ| numbers a step, and one of
    |θ| and the batch on the way back. Memory per step: activations of a share.

    The loss must be the mean over the rows of its batch, plus what depends on no row; this is
    tried on the first batch.

    Reference: the pair of operators of Shoeybi et al., Megatron-LM, arXiv:1909.08053, section 3.

    Args:
        inner: how a share is computed; any mode that does not factor.
        group: the processes, as ``torch.distributed.new_group`` gives them. Default: all.

    Raises:
        SimudyError: no process group is there; the loss is no mean over rows (BatchNorm in train
            mode, class weights, a sum); ``inner`` factors weights.
    """

    inner: Gradient = field(default_factory=Reverse)
    group: Any = None

    def of(self, loss: Loss, *, has_aux: bool = False) -> Callable[[Params, Any], Any]:
        if has_aux:
            raise SimudyError("Sharded() sums whole gradients: use Factored() on one process")
        return partial(self._grads, self.inner.of(loss))

    def bind(
        self, loss: Loss, params: Params, batches: Sequence[Any], rules: Sequence[Any]
    ) -> tuple[Params, Any]:
        if chosen := self.inner.chosen(loss, params, batches):
            raise SimudyError(
                f"Sharded({type(self.inner).__name__}()) would factor {chosen[0]!r}, and factors "
                "of several processes cannot be summed: use Sharded(Mixed())"
            )
        self._share()
        self._require_mean(loss, params, batches[0])
        params, local = self.inner.bind(loss, params, batches, rules)
        return params, partial(self._grads, local)

    def kept(self, params: Params, activations: int) -> int:
        return self.inner.kept(params, activations // self._share()[1])

    def leaner(self) -> Gradient | None:
        inner = self.inner.leaner()
        return inner and Sharded(inner, self.group)

    def _share(self) -> tuple[int, int]:
        """This process's rank, and how many there are."""
        return place(self.group, of="Sharded()")

    def _grads(self, local: Callable[[Params, Any], Params], params: Params, batch: Any) -> Params:
        params, batch = same(self.group, (params, batch))
        weight, rows = self._own(batch)
        found = local(params, rows)
        touched = next(iter(params.values())).new_tensor([name in found for name in params])
        shares = [weight * found.get(name, torch.zeros_like(p)) for name, p in params.items()]
        touched, *sums = Summed.apply(self.group, touched, *shares)
        names = zip(params, unwrapped(touched).tolist(), strict=True)
        return {name: grad for (name, count), grad in zip(names, sums, strict=True) if count}

    def _own(self, batch: Any) -> tuple[float, Any]:
        """This process's part of the batch, and its weight. Where there is no row left for it, the
        first one, of weight 0: all processes then do the same.
        """
        (rank, ranks), n = self._share(), _count(batch)
        rows = slice(rank, None, ranks) if rank < n else slice(0, 1)
        return len(range(rank, n, ranks)) / n, _rows(batch, rows)

    @torch.no_grad()
    def _require_mean(self, loss: Loss, params: Params, batch: Any) -> None:
        whole, (rank, ranks) = unwrapped(loss(params, batch)), self._share()
        try:
            alone = [
                unwrapped(loss(params, _rows(batch, [i])))
                for i in range(rank, _count(batch), ranks)
            ]
        except (RuntimeError, ValueError):  # it takes no single row
            alone = [whole * float("nan")]
        (total,) = summed(self.group, [sum(alone, torch.zeros_like(whole))])
        mean, rtol = total / _count(batch), torch.finfo(whole.dtype).eps ** 0.5
        if not torch.allclose(mean, whole, rtol=rtol, atol=1e-9):
            raise SimudyError(
                f"Sharded() needs a loss that is the mean over the rows of its batch: this is "
                f"{float(whole.flatten()[0]):.6g}, and {float(mean.flatten()[0]):.6g} row by row. "
                "Put BatchNorm in eval mode, leave class weights out, or simulate on one process"
            )


def _count(batch: Any) -> int:
    """Rows of its first tensor that has any."""
    n = next((len(leaf) for leaf in tree.leaves(batch) if leaf.dim()), 0)
    if n == 0:
        raise SimudyError("Sharded() cuts the batch by rows, and this one has none")
    return n


def _rows(batch: Any, which: Any) -> Any:
    """These rows of all that has as many rows as the batch."""
    n, leaves = _count(batch), tree.leaves(batch)
    own = [leaf[which] if leaf.dim() and len(leaf) == n else leaf for leaf in leaves]
    return tree.rebuild(batch, own)
