"""Traced gives the derivative of the loss as it is now, whatever has changed since it recorded."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from simudy import SGD, Mixed, Recompute, Reverse, SimudyError, StatelessModel, Traced, simulate
from simudy.dynamics.adjoint import Direct

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
LABELS = torch.arange(3) % 2


def network(**how):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))
    return StatelessModel(layers.double().eval(), **how)


def slope(loss, mode, *, batches=None, params=None, adjoint=Direct()):  # noqa: B008 (frozen)
    """d(end)/d(images) after a few steps; ``batches`` makes them of the images."""
    x = X.clone().requires_grad_()
    params = network().params if params is None else params
    data = [(x, LABELS)] * 3 if batches is None else batches(x)
    end = simulate(loss, params, data, SGD(lr=0.3), adjoint=adjoint, gradient=mode)
    value = sum((p.square().sum() for p in end.values()), torch.zeros(()))
    return torch.autograd.grad(value, x)[0]


@dataclasses.dataclass
class Scheduled:
    """A loss that holds its state out of its ``repr``, in every way an object may."""

    model: StatelessModel
    rate: float = dataclasses.field(default=0.1, repr=False)

    def __post_init__(self):
        self.table = np.linspace(0.1, 1.0, 5000)
        self.hidden = SimpleNamespace(mask=torch.ones(4, dtype=torch.float64))
        self.inner = lambda factor=1.0: factor
        self.steps = iter([1.0])

    def __call__(self, params, batch):
        images, labels = batch[0] * self.hidden.mask, batch[1]
        decay = sum(p.square().sum() for p in params.values())
        weight = self.rate + self.table[2500] + self.inner()
        return self.model.loss(params, (images, labels)) + weight * decay

    __hash__ = object.__hash__


def change_criterion(loss):
    loss.model.criterion = lambda z, y: nn.functional.cross_entropy(z, y, reduction="none").square()


CHANGES = {
    "an attribute": lambda loss: setattr(loss, "rate", 0.3),
    "an entry of an array": lambda loss: loss.table.__setitem__(2500, 5.0),
    "a tensor of an object it holds": lambda loss: loss.hidden.mask.mul_(2.0),
    "a tensor replaced": lambda loss: setattr(loss.hidden, "mask", loss.hidden.mask / 2),
    "a default": lambda loss: setattr(loss.inner, "__defaults__", (2.0,)),
    "a buffer in place": lambda loss: loss.model.buffers["1.running_mean"].add_(0.5),
    "a buffer replaced": lambda loss: loss.model.buffers.update(
        {"1.running_var": torch.full((3,), 4.0, dtype=torch.float64)}
    ),
    "the criterion": change_criterion,
    "a number of a layer": lambda loss: setattr(loss.model.module[1], "eps", 0.5),
    "a layer": lambda loss: loss.model.module.__setitem__(2, nn.Sigmoid()),
    "a hook": lambda loss: loss.model.module[0].register_forward_hook(lambda m, a, z: z.sin()),
}


@pytest.mark.parametrize("adjoint", [Direct(), Recompute(2)])
@pytest.mark.parametrize("change", CHANGES)
def test_a_loss_that_has_changed_is_recorded_anew(change, adjoint):
    loss, mode = Scheduled(network()), Traced()
    before = slope(loss, mode, adjoint=adjoint)
    torch.testing.assert_close(before, slope(loss, Reverse()), rtol=1e-10, atol=1e-12)
    CHANGES[change](loss)
    after = slope(loss, mode, adjoint=adjoint)
    torch.testing.assert_close(after, slope(loss, Reverse()), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(before, after, rtol=1e-4)


class Backward(torch.autograd.Function):
    """The identity, whose gradient is scaled: a change that no value shows."""

    scale = 1.0

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *gradient):
        return Backward.scale * gradient[0]

    @staticmethod
    def jvp(ctx, *tangent):
        return Backward.scale * tangent[0]


def test_a_change_that_only_the_backward_pass_shows(monkeypatch):
    model, mode = network(), Traced()

    def loss(params, batch):
        return model.loss({k: Backward.apply(p) for k, p in params.items()}, batch)

    before = slope(loss, mode)
    monkeypatch.setattr(Backward, "scale", 0.5)
    after = slope(loss, mode)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, slope(loss, Traced()), rtol=1e-12, atol=1e-14)


def test_a_penalty_that_is_not_felt_where_the_run_begins():
    """The same number and gradient at θ0, another function: relu(|w| − c) with another c."""
    held = SimpleNamespace(c=50.0)
    mode, model = Traced(), network()

    def loss(params, batch):
        return model.loss(params, batch) + (params["0.weight"].abs() - held.c).relu().sum()

    for held.c in (50.0, 0.45, 0.05):
        torch.testing.assert_close(
            slope(loss, mode), slope(loss, Reverse()), rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("adjoint", [Direct(), Recompute(2)])
def test_numbers_that_a_batch_hides_from_its_repr(adjoint):
    """Arrays of numpy and objects in the batch, other ones in each step."""

    class Weight:
        def __init__(self, value):
            self.value = value

        def __repr__(self):
            return "Weight"

    def batches(x):
        tables = [np.ones(5000) for _ in range(3)]
        for t, table in enumerate(tables):
            table[2500] = 1.0 + t
        return [(x, LABELS, table, Weight(t)) for t, table in enumerate(tables)]

    def loss(params, batch):
        x, labels, table, weight = batch
        decay = sum(p.square().sum() for p in params.values())
        return model.loss(params, (x, labels)) + 0.1 * (table[2500] + weight.value) * decay

    mode, model = Traced(), network()
    for _ in range(2):
        torch.testing.assert_close(
            slope(loss, mode, batches=batches, adjoint=adjoint),
            slope(loss, Reverse(), batches=batches),
            rtol=1e-10,
            atol=1e-12,
        )


@pytest.mark.parametrize("first", [True, False])
def test_autocast_at_one_time_and_not_at_another(first):
    model = StatelessModel(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    mode, x = Traced(), X.float().requires_grad_()

    def once(gradient, on):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            end = simulate(
                model.loss, model.params, [(x, LABELS)] * 2, SGD(lr=0.3), gradient=gradient
            )
        return torch.autograd.grad(end["0.weight"].square().sum(), x)[0]

    for on in (first, not first):
        torch.testing.assert_close(once(mode, on), once(Mixed(), on), rtol=1e-6, atol=1e-7)


def test_lambdas_made_anew_leave_one_graph_and_others_are_dropped():
    model, mode = network(), Traced()
    for _ in range(30):
        slope(lambda p, b: model.loss(p, b), mode)
    assert len(mode.graphs) == 1
    for i in range(2 * mode.keep):
        simulate(
            lambda p, b, i=i: (i + 1.0) * p["w"].square().sum(),
            {"w": torch.ones(2)},
            [()],
            SGD(),
            gradient=mode,
        )
    assert len(mode.graphs) == mode.keep


@pytest.mark.parametrize(
    "read",
    [
        lambda labels: labels.tolist(),
        lambda labels: labels.numpy().tolist(),
        lambda labels: np.asarray(labels).tolist(),
        lambda labels: [int(label) for label in labels],
    ],
)
def test_labels_read_as_numbers_are_refused(read):
    """Of one class here, so that no other order of theirs could tell."""

    def loss(params, batch):
        z = model(params, batch[0])
        return sum(z[i, c] for i, c in enumerate(read(batch[1])))

    model = network()
    with pytest.raises(SimudyError, match=r"use Mixed\(\)|use operations of torch"):
        slope(loss, Traced(), batches=lambda x: [(x, torch.full((3,), c)) for c in (0, 1)])


def test_rows_picked_by_a_mask_are_refused():
    def loss(params, batch):
        return model(params, batch[0])[batch[1] == 0].mean() + params["0.weight"].square().sum()

    model = network()
    with pytest.raises(SimudyError, match=r"use Mixed\(\)"):
        slope(loss, Traced())


def test_a_loss_that_counts_its_calls_is_refused():
    calls, model = [], network()

    def loss(params, batch):
        calls.append(1)
        return model.loss(params, batch) * len(calls)

    with pytest.raises(SimudyError, match="keep no state in it"):
        slope(loss, Traced())


def test_a_loss_that_changes_before_the_backward_pass_is_not_recorded_as_changed():
    loss, mode = Scheduled(network()), Traced()
    x = X.clone().requires_grad_()
    end = simulate(loss, loss.model.params, [(x, LABELS)] * 2, SGD(lr=0.3), gradient=mode)
    loss.rate = 3.0
    with pytest.raises(SimudyError, match="has changed since"):
        torch.autograd.grad(end["0.weight"].sum(), x)
