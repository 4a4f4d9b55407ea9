"""Buffers that live: running statistics through a run, as torch leaves them."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unrolled import plain_loss, sgd, view

from simudy import (
    SGD,
    Adam,
    Direct,
    Factored,
    Implicit,
    Mixed,
    Recompute,
    Reverse,
    SimudyError,
    StatelessModel,
    Traced,
    Truncated,
    simulate,
)
from simudy.dynamics import tree
from simudy.testing import directional

pytestmark = pytest.mark.usefixtures("float64")

GRADIENTS = Reverse(), Mixed(), Traced(), Factored(layers="all")
MODES = list(itertools.product((Direct(), Recompute(2)), GRADIENTS))
LABELS = torch.arange(6) % 3


class Counting(nn.Module):
    """With a buffer written in place, and one that is put in place of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        return x


def images(steps: int, size: int = 5) -> list[Tensor]:
    return [torch.randn(6, 2, size, size) for _ in range(steps)]


def convolutional() -> nn.Module:
    twice = nn.BatchNorm2d(4, momentum=0.3)
    return nn.Sequential(
        Counting(),
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        twice,
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding=1),
        twice,
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(100, 5),
        nn.BatchNorm1d(5, affine=False),
        nn.BatchNorm1d(5).eval(),
        nn.Linear(5, 3),
    )


def in_torch(module: nn.Module, optimizer: Any, data: list[Tensor]) -> dict[str, Tensor]:
    for x in data:
        optimizer.zero_grad()
        F.cross_entropy(module(x), LABELS).backward()
        optimizer.step()
    return {name: b.clone() for name, b in module.named_buffers()}


@pytest.mark.parametrize("mode", MODES[:7], ids=str)
def test_they_are_left_as_torch_leaves_them(mode):
    module, data = convolutional(), images(4)
    module[4].weight.requires_grad_(False)  # which is among the buffers, and stays
    in_torch(module, torch.optim.SGD(module.parameters(), 0.1), images(2))  # no fresh ones
    model, trained = StatelessModel(module), copy.deepcopy(module)
    before = tree.map(torch.clone, model.buffers)
    theirs = in_torch(trained, torch.optim.SGD(trained.parameters(), 0.1, 0.9), data)
    _, buffers = simulate(
        model.loss, model.params, [(x, LABELS) for x in data], SGD(0.1, 0.9),
        buffers=model.buffers, adjoint=mode[0], gradient=mode[1],
    )  # fmt: skip
    assert buffers.keys() == model.buffers.keys() == {*theirs, "4.weight"}
    for name, ours in buffers.items():
        expected = theirs.get(name, model.buffers[name])
        assert ours.dtype == expected.dtype, name
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12, msg=name)
        assert torch.equal(model.buffers[name], before[name])
    moved = [name for name in theirs if not torch.equal(buffers[name], model.buffers[name])]
    assert len(moved) == 13 and not any(name.startswith("13.") for name in moved)
    module.load_state_dict({**trained.state_dict(), **buffers})
    torch.testing.assert_close(module.eval()(data[0]), trained.eval()(data[0]))


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_their_derivative_is_that_of_the_formula_unrolled_in_torch(mode):
    module = small()
    model, x = StatelessModel(module), [torch.randn(6, 4, requires_grad=True) for _ in range(4)]
    data, lr = [(each, LABELS) for each in x], torch.tensor(0.3, requires_grad=True)
    ways: dict = {"adjoint": mode[0], "gradient": mode[1]}
    _, buffers = simulate(
        model.loss, model.params, data, SGD(lr, 0.9), buffers=model.buffers, **ways
    )
    plain = copy.deepcopy(module)
    plain[1] = nn.BatchNorm1d(5, track_running_stats=False)
    run = sgd(plain_loss(plain), model.params, data, lr=lr, momentum=0.9)
    mean, square = torch.zeros(5), torch.ones(5)
    for params, each in zip([model.params, *run.iterates[:-1]], x, strict=True):
        hidden = each @ params["0.weight"].mT + params["0.bias"]
        mean = 0.9 * mean + 0.1 * hidden.mean(0)
        square = 0.9 * square + 0.1 * hidden.var(0)
    assert int(buffers["1.num_batches_tracked"]) == 4
    ours = view({k: buffers[f"1.running_{k}"] for k in ("mean", "var")})
    theirs = view({"mean": mean, "var": square})
    found = torch.autograd.grad(ours, [*x, lr])
    for a, b in zip(found, torch.autograd.grad(theirs, [*x, lr]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", [MODES[0], MODES[5]], ids=str)
def test_their_derivative_is_that_of_finite_differences(mode):
    model, data = StatelessModel(convolutional()), images(3)

    def outcome(data: list[Tensor], mode: Any = MODES[0]) -> Tensor:
        buffers = simulate(
            model.loss, model.params, [(x, LABELS) for x in data], Adam(0.05, eps=1e-2),
            buffers=model.buffers, adjoint=mode[0], gradient=mode[1],
        )[1]  # fmt: skip
        moved = {k: b for k, b in buffers.items() if k != "0.mean" and b.is_floating_point()}
        return view(moved)

    wanted = [x.clone().requires_grad_() for x in data]
    grads = torch.autograd.grad(outcome(wanted, mode), wanted)
    along = [torch.randn_like(x) for x in data]
    slope = sum(float((g * v).sum()) for g, v in zip(grads, along, strict=True))
    assert slope == pytest.approx(directional(outcome, data, along, step=1e-4), rel=1e-7)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_forward_mode_sees_them_too(mode):
    model, x, v = StatelessModel(small()), *torch.randn(2, 6, 4)

    def outcome(x: Tensor, mode: Any = mode) -> Tensor:
        ways: dict = {"adjoint": mode[0], "gradient": mode[1]}
        buffers = simulate(
            model.loss, model.params, [(x, LABELS)] * 3, SGD(0.3), buffers=model.buffers, **ways
        )[1]
        return view({k: b for k, b in buffers.items() if b.is_floating_point()}).sin()

    slope = torch.func.grad(lambda x: outcome(x, MODES[0]))(x)
    tangent = torch.func.jvp(outcome, (x,), (v,))[1]
    torch.testing.assert_close(tangent, (slope * v).sum(), rtol=1e-9, atol=1e-12)
    hessian = torch.func.hessian(outcome)(x)
    twice = torch.func.jacrev(torch.func.jacrev(lambda x: outcome(x, MODES[0])))(x)
    torch.testing.assert_close(hessian, twice, rtol=1e-8, atol=1e-11)


def test_two_runs_are_one_beside_the_state_and_what_is_seen():
    model, data = StatelessModel(convolutional()), [(x, LABELS) for x in images(6)]
    see: dict = {"observe": lambda t, params, loss: loss, "return_state": True}
    whole = simulate(model.loss, model.params, data, SGD(0.1, 0.9), buffers=model.buffers, **see)
    params, state, buffers, first = simulate(
        model.loss, model.params, data[:3], SGD(0.1, 0.9), buffers=model.buffers, **see
    )
    *rest, last = simulate(
        model.loss, params, data[3:], SGD(0.1, 0.9), state=state, buffers=buffers, **see
    )
    found, expected = tree.leaves((rest, first + last)), tree.leaves(whole)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_copy_on_another_dtype_moves_them_too_and_a_frozen_norm_does_not():
    model = StatelessModel(small()).to(torch.float32)
    data = [(torch.randn(6, 4, dtype=torch.float32), LABELS)]
    buffers = simulate(model.loss, model.params, data, SGD(), buffers=model.buffers)[1]
    assert buffers["1.running_mean"].any() and buffers["1.running_mean"].dtype == torch.float32
    still = StatelessModel(small().eval())
    data = [(torch.randn(6, 4), LABELS)]
    buffers = simulate(still.loss, still.params, data, SGD(), buffers=still.buffers)[1]
    assert all(torch.equal(b, still.buffers[name]) for name, b in buffers.items())
    buffers = simulate(still.loss, still.params, [], SGD(), buffers=still.buffers)[1]
    assert buffers is still.buffers


def test_under_vmap_and_truncated():
    model, x = StatelessModel(small()), torch.randn(2, 6, 4)

    def mean(x: Tensor, **ways: Any) -> Tensor:
        data = [(x, LABELS)] * 3
        moved = simulate(model.loss, model.params, data, SGD(0.3), buffers=model.buffers, **ways)[1]
        return moved["1.running_mean"].sin().sum()

    both = torch.func.vmap(torch.func.grad(mean))(x)
    torch.testing.assert_close(both[1], torch.func.grad(mean)(x[1]))
    last = torch.func.grad(lambda x: mean(x, adjoint=Truncated(1)))(x[0])
    assert last.any() and not torch.allclose(last, both[0])


def test_what_has_no_buffers_to_move_is_refused():
    model, data = StatelessModel(small()), [(torch.randn(6, 4), LABELS)]
    with pytest.raises(SimudyError, match="of a StatelessModel, and this loss is none's"):
        simulate(
            lambda params, batch: model.loss(params, batch), model.params, data, SGD(),
            buffers=model.buffers,
        )  # fmt: skip
    with pytest.raises(SimudyError, match="no average or buffers"):
        simulate(
            model.loss, model.params, data, SGD(), buffers=model.buffers,
            adjoint=Implicit(stationary=1e3),
        )  # fmt: skip


class Bare(nn.Module):
    """Norms by functions alone, on buffers of its own; one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 4, 3), nn.Linear(36, 3)
        for name in ("mean", "other"):
            self.register_buffer(name, torch.zeros(4))
        for name in ("square", "another"):
            self.register_buffer(name, torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        hidden = self.first(x)
        for momentum in (0.1, 0.3):
            hidden = F.batch_norm(
                hidden.tanh(), own.mean, own.square, None, None, self.training, momentum
            )
        hidden = F.instance_norm(hidden, own.other, own.another, momentum=0.2)
        return self.last(hidden.flatten(1))


class Own(nn.BatchNorm2d):
    """As timm has it: a norm with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        own: Any = self
        own.num_batches_tracked.add_(1)
        statistics = own.running_mean, own.running_var, own.weight, own.bias
        return F.batch_norm(input, *statistics, self.training, 0.1, self.eps).tanh()


def owned() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), Own(4), nn.Flatten(), nn.Linear(36, 3))


@pytest.mark.parametrize("mode", [MODES[0], MODES[5], MODES[6]], ids=str)
@pytest.mark.parametrize("make", [Bare, owned])
def test_a_norm_of_ones_own_is_left_as_torch_leaves_it(make, mode):
    module, data = make(), images(4)
    model = StatelessModel(module)
    theirs = in_torch(module, torch.optim.SGD(module.parameters(), 0.1), data)
    ways: dict = {"adjoint": mode[0], "gradient": mode[1]}
    _, buffers = simulate(
        model.loss, model.params, [(x, LABELS) for x in data], SGD(0.1),
        buffers=model.buffers, **ways,
    )  # fmt: skip
    assert all(not torch.equal(b, buffers[name]) for name, b in model.buffers.items())
    torch.testing.assert_close(buffers, theirs, rtol=1e-9, atol=1e-12)


class Centring(nn.Linear):
    """Subtracts a running mean that it keeps."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.register_buffer("centre", torch.zeros(4))

    def forward(self, input: Tensor) -> Tensor:
        own: Any = self
        if self.training:
            own.centre.mul_(0.9).add_(input.detach().mean(0), alpha=0.1)
        return super().forward(input - own.centre)


def test_a_module_that_reads_what_it_writes_is_refused_and_in_eval_mode_exact():
    data = [(torch.randn(6, 4), LABELS)] * 3
    model = StatelessModel(Centring())
    for buffers in (None, model.buffers):
        model = StatelessModel(Centring())
        with pytest.raises(SimudyError, match=r"itself written \(centre\)"):
            simulate(model.loss, model.params, data, SGD(0.1), buffers=buffers)
    module = Centring().eval()
    model = StatelessModel(module)
    end = simulate(model.loss, model.params, data, SGD(0.1))
    in_torch(module, torch.optim.SGD(module.parameters(), 0.1), [x for x, _ in data])
    torch.testing.assert_close(end, {k: p.detach() for k, p in module.named_parameters()})


def test_buffers_of_another_model_are_refused():
    model, data = StatelessModel(convolutional()), [(x, LABELS) for x in images(2)]
    given, odd = model.buffers, torch.ones(7)
    wrong: list[Any] = [
        ({k: b for k, b in given.items() if k != "2.running_mean"}, "'2.running_mean' are missing"),
        ({**given, "2.running_var": odd}, r"have shape \(7,\), not \(4,\)"),
        ({**given, "13.running_mean": torch.ones(5)}, "do not move in this run"),
        (iter(given), "are missing"),
    ]
    for buffers, message in wrong:
        with pytest.raises(SimudyError, match=message):
            simulate(model.loss, model.params, data, SGD(), buffers=buffers)
