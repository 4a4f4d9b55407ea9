"""RNN, GRU and LSTM as loops over time in plain operations.

torch's own loops write in place, which ``vmap`` refuses, and cuDNN's have no second derivative.
These are called with the arguments of ``torch.rnn_tanh``, ``torch.gru`` and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simudy.errors import SimudyError

State = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM
Advance = Callable[[Tensor, Tensor, State], State]


def tanh_step(gates: Tensor, recurrent: Tensor, state: State) -> State:
    """h' = tanh(gates + recurrent), the two affine maps of input and state."""
    return ((gates + recurrent).tanh(),)


def relu_step(gates: Tensor, recurrent: Tensor, state: State) -> State:
    """h' = relu(gates + recurrent)."""
    return ((gates + recurrent).relu(),)


def gru_step(gates: Tensor, recurrent: Tensor, state: State) -> State:
    """h' = n + z·(h − n), with reset r, update z and candidate n."""
    (r, z, n), (hr, hz, hn) = gates.chunk(3, -1), recurrent.chunk(3, -1)
    reset, update = (r + hr).sigmoid(), (z + hz).sigmoid()
    candidate = (n + reset * hn).tanh()
    return (candidate + update * (state[0] - candidate),)


def lstm_step(gates: Tensor, recurrent: Tensor, state: State) -> State:
    """c' = f·c + i·g;  h' = o·tanh(c')."""
    i, f, g, o = (gates + recurrent).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def layers(torchs_own: Callable[..., Any], step: Advance, *args: Any) -> Any:
    """``torch.gru`` and its like: ``(outputs, h)``, or ``(outputs, h, c)`` of an LSTM.

    Args:
        torchs_own: what packed sequences, which come with four tensors first, are left to.
        step: one step of the cell.
        args: input, state, weights, has_biases, num_layers, dropout, train, bidirectional,
            batch_first.
    """
    if not isinstance(args[3], bool):
        return torchs_own(*args)
    x, state, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first = args
    if train and dropout > 0:
        raise SimudyError(
            "a recurrent layer drops units at random in train mode, so the run cannot be "
            "simulated; put it in eval mode or set its rate to 0"
        )
    starts = list(zip(*(s.unbind(0) for s in _as_state(state)), strict=True))
    own = _split(weights, len(starts))
    x, ends, ways = x.transpose(0, 1) if batch_first else x, [], 1 + bidirectional
    for first in range(0, num_layers * ways, ways):
        outputs = []
        for way in range(ways):
            output, end = _run(step, x, starts[first + way], own[first + way], has_biases, way == 1)
            outputs.append(output)
            ends.append(end)
        x = torch.cat(outputs, -1)
    last = (torch.stack(column) for column in zip(*ends, strict=True))
    return x.transpose(0, 1) if batch_first else x, *last


def cell(step: Advance, x: Tensor, state: Any, *weights: Tensor | None) -> Any:
    """``torch.gru_cell`` and its like, with the arguments w_ih, w_hh, b_ih, b_hh."""
    w_ih, w_hh, b_ih, b_hh = (*weights, None, None)[:4]
    state = _as_state(state)
    h, *_ = state
    end = step(F.linear(x, w_ih, b_ih), F.linear(h, w_hh, b_hh), state)  # type: ignore[arg-type]
    return end if len(end) > 1 else end[0]  # pyright: ignore[reportGeneralTypeIssues]


def _run(
    step: Advance,
    x: Tensor,
    state: State,
    weights: Sequence[Tensor],
    has_biases: bool,
    backwards: bool,
) -> tuple[Tensor, State]:
    """One layer in one direction over ``x (time, n, in)``."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if has_biases else (None, None)
    project = rest[2 * has_biases :]  # of an LSTM with proj_size
    gates, outputs = F.linear(x, w_ih, b_ih).unbind(0), []
    for gate in reversed(gates) if backwards else gates:
        h, *others = step(gate, F.linear(state[0], w_hh, b_hh), state)
        state = (F.linear(h, *project) if project else h, *others)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _as_state(state: Any) -> State:
    return tuple(state) if isinstance(state, (list, tuple)) else (state,)


def _split(weights: Sequence[Tensor], parts: int) -> list[Sequence[Tensor]]:
    each = len(weights) // parts
    return [weights[i : i + each] for i in range(0, len(weights), each)]


REPLACED: dict[Any, Callable[..., Any]] = {
    torch.rnn_tanh: partial(layers, torch.rnn_tanh, tanh_step),
    torch.rnn_relu: partial(layers, torch.rnn_relu, relu_step),
    torch.gru: partial(layers, torch.gru, gru_step),
    torch.lstm: partial(layers, torch.lstm, lstm_step),
    torch.rnn_tanh_cell: partial(cell, tanh_step),
    torch.rnn_relu_cell: partial(cell, relu_step),
    torch.gru_cell: partial(cell, gru_step),
    torch.lstm_cell: partial(cell, lstm_step),
}
