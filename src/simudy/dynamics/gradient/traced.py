"""Forward over reverse, recorded at its first use and replayed ever after."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import getitem
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.fx.experimental.proxy_tensor import make_fx

from simudy.dynamics import tree
from simudy.dynamics.ambient import autocast_states, no_autocast, one_thread
from simudy.dynamics.custom_vjp import custom_vjp, is_plain_wanted
from simudy.dynamics.gradient.base import Loss
from simudy.dynamics.gradient.mixed import Mixed, forward_over_reverse, without_aux
from simudy.dynamics.gradient.reverse import reverse
from simudy.dynamics.gradient.signature import Signature, layout, signature
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Traced(Mixed):
    """``Mixed`` as two graphs of tensor operations, recorded once per function and layout of its
    inputs, then replayed.

    The same numbers and the same memory, in less time: what ``torch.func`` looks up at every step
    is settled, and the weight gradient that forward over reverse computes a second time and throws
    away is taken out. Recording takes a few seconds for a ResNet. At its first use a graph is
    compared, on other numbers, with what it was recorded from.

    Each simulation runs the loss and its gradient once for every layout of its batches, and takes
    the graphs of the same operations and constants, or records them: whatever else the loss reads
    (a schedule, buffers, autocast) may change from one simulation to the next. It must not branch
    on the numbers it is given, nor change within a simulation.

    Args:
        compile: a mode of ``torch.compile`` for the graphs, such as ``"default"``, or
            ``"reduce-overhead"`` for CUDA graphs on a GPU; takes a compiler and minutes. None: the
            operations run as recorded, and to the last bit.

    Raises:
        SimudyError: the loss cannot be recorded, or its graph gives other numbers; the remedy is
            ``Mixed()``.
    """

    compile: str | None = None
    graphs: dict[Signature, Recording] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    keep: ClassVar[int] = 64  # recordings, those least lately used being dropped

    def of(self, loss: Loss, *, has_aux: bool = False) -> Callable[[Params, Any], Any]:
        if has_aux:
            raise SimudyError(
                "Traced() replays one graph for all steps, and factored weights grow: use Mixed() "
                "inside"
            )
        return partial(self._grads, loss, {})

    def _grads(self, loss: Loss, met: dict[Hashable, Use], params: Params, batch: Any) -> Params:
        inputs = params, batch
        if is_plain_wanted(inputs):  # which a recorded graph does not know
            return reverse(loss, False, params, batch)
        structure, touched, uses = tree.structure(inputs), [], []

        def grads(*leaves: Tensor) -> tuple[Tensor, ...]:
            found = reverse(loss, False, *tree.rebuild_step(*inputs, leaves))
            touched[:] = found
            return tuple(found.values())

        def value(leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
            key = structure, autocast_states(), *map(layout, leaves)
            if key not in met:
                met[key] = self._recording(grads, leaves), tuple(touched)
            uses[:] = [met[key]]
            return uses[0][0].value(*leaves)

        def pullback(
            leaves: Sequence[Tensor], needed: Sequence[bool], cotangents: Sequence[Tensor]
        ) -> Any:
            recording, names = uses[0]
            products = partial(_products, loss, inputs, names, needed)
            pulled = self._pulled(recording, grads, products, (*leaves, *cotangents), needed)
            return tree.fill([None] * len(leaves), needed, pulled)

        given = tree.step_leaves(*inputs)
        found = custom_vjp(value, pullback, given, plain=lambda leaves: grads(*leaves))
        return dict(zip(uses[0][1], found, strict=True))

    def _recording(self, grads: Function, leaves: Sequence[Tensor]) -> Recording:
        """That of the loss as it is now, recorded if it is not among those kept."""
        with one_thread:
            signed = self._signature(grads, leaves)
            found = self.graphs.pop(signed, None)
            self.graphs[signed] = found or Recording(signed, self._recorded(grads, leaves))
            for old in list(self.graphs)[: -self.keep]:
                del self.graphs[old]
            return self.graphs[signed]

    def _pulled(
        self,
        recording: Recording,
        grads: Function,
        products: Function,
        tensors: Sequence[Tensor],
        needed: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        key = *needed, *map(layout, tensors)
        if key not in recording.pullbacks:
            with one_thread:
                if self._signature(grads, tensors[: len(needed)]) != recording.signature:
                    raise SimudyError(
                        f"the loss has changed since the simulation, and {self} has yet to record "
                        "its backward pass: change it after, or use Reverse(), which needs no more"
                    )
                recording.pullbacks[key] = self._recorded(products, tensors)
        return recording.pullbacks[key](*tensors)

    def _signature(self, fn: Function, tensors: Sequence[Tensor]) -> Signature:
        with self._recorder(fn, tensors) as plain:
            return signature(fn, plain)

    def _recorded(self, fn: Function, tensors: Sequence[Tensor]) -> Function:
        with self._recorder(fn, tensors) as plain:
            graph = _pruned(make_fx(fn)(*plain))
            _own_constants(graph)
            run = _compiled(graph, self.compile, plain[0].device) if self.compile else graph
            run = partial(_as_recorded, run)
            others = [_moved(t) for t in plain]  # what was recorded as a constant shows
            off, size = _difference(run(*others), fn(*others))
        if not off <= torch.finfo(tensors[0].dtype).eps ** 0.5 * size:
            raise SimudyError(
                f"{self} is off by {off:.1e} of {size:.1e}: use Mixed(), which runs the loss"
            )
        return run

    @contextmanager
    def _recorder(self, fn: Function, tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        # Within the transforms, what is done to the plain numbers would be wrapped again.
        with temporarily_clear_interpreter_stack():
            plain = [_plain(t) for t in tensors]
            try:
                yield plain
            except Exception as error:  # whatever a module may do that a recorder cannot follow
                fn(*plain)  # what fails without a recorder too is no matter of recording
                raise SimudyError(
                    f"{self} cannot record this loss: use Mixed(), which runs it. {error}"
                ) from error


@dataclass(eq=False)
class Recording:
    """A gradient as graphs: its value, and its pullback by what is needed and the layouts met."""

    signature: Signature
    value: Function
    pullbacks: dict[Hashable, Function] = field(default_factory=dict)


Use = tuple[Recording, tuple[str, ...]]  # and the names of the parameters that have a gradient


def _as_recorded(graph: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
    with no_autocast():  # its casts are among the operations
        return graph(*tensors)


def _own_constants(graph: fx.GraphModule) -> None:
    """Copies of the constants, which are other people's, to write to."""
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            constant = getattr(graph, node.target)
            copied = constant.clone() if constant.requires_grad else constant.detach().clone()
            delattr(graph, node.target)
            setattr(graph, node.target, copied)


def _products(
    loss: Loss,
    inputs: tuple[Params, Any],
    touched: Sequence[str],
    needed: Sequence[bool],
    *tensors: Tensor,
) -> tuple[Tensor, ...]:
    """The pullback of ∇ℓ for the leaves that need one; ``tensors`` are the leaves, then a cotangent
    per touched parameter.
    """
    leaves, cotangents = tensors[: len(needed)], tensors[len(needed) :]
    plain = partial(without_aux, loss)
    products = forward_over_reverse(plain, inputs, touched, leaves, needed, cotangents)
    return tuple(product for product in products if product is not None)


def _pruned(graph: fx.GraphModule) -> fx.GraphModule:
    """Without what nobody reads, down to the single outputs of a convolution's derivative; and for
    any strides, which ``vmap`` may have changed.
    """
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
        if node.target is torch.ops.aten.convolution_backward.default and all(
            u.target is getitem for u in node.users
        ):
            read = {user.args[1] for user in node.users}
            *args, wanted = node.args
            node.args = (*args, [want and i in read for i, want in enumerate(wanted)])
    graph.recompile()
    return graph


def _plain(tensor: Tensor) -> Tensor:
    """The numbers beneath ``torch.func``'s wrappers, within which nothing can be recorded; of a
    batch, the first.
    """
    func = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    while func.is_functorch_wrapped_tensor(tensor):
        inner = func.get_unwrapped(tensor)
        tensor = (
            inner.select(func.maybe_get_bdim(tensor), 0) if func.is_batchedtensor(tensor) else inner
        )
    return tensor.detach()


def _moved(tensor: Tensor) -> Tensor:
    """About the same numbers, but others, and none drawn from a generator that is somebody
    else's.
    """
    if not tree.is_float(tensor):
        return tensor
    return tensor * torch.linspace(0.99, 1.01, tensor.numel()).to(tensor).reshape(tensor.shape)


def _compiled(graph: fx.GraphModule, mode: str, device: torch.device) -> Function:
    options = dict(torch._inductor.list_mode_options(mode))
    if device.type == "cpu":  # channels innermost: see StatelessModel.__call__
        options["layout_optimization"] = False
    fast = torch.compile(graph, options=options)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            results = fast(*(t.detach() for t in tensors))
        # A CUDA graph writes its results where its last ones were.
        return tuple(t.clone() for t in results) if options.get("triton.cudagraphs") else results

    return run


def _difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """Norm of the difference over all tensors, and of ``theirs``."""
    return _norm([a - b for a, b in zip(ours, theirs, strict=True)]), _norm(theirs)


def _norm(tensors: Sequence[Tensor]) -> float:
    return sum(float(t.detach().abs().double().square().sum()) for t in tensors) ** 0.5
