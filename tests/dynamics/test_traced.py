"""Traced: recorded once, replayed without the loss, and never silently wrong."""

import shutil
from functools import partial
from operator import getitem

import pytest
import torch
from torch import nn

from simudy import (
    SGD,
    Direct,
    Factored,
    Mixed,
    Recompute,
    SimudyError,
    StatelessModel,
    Traced,
    simulate,
)

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile on CPU needs g++"
)


def quadratic(params, batch):
    return (params["w"] * batch[0]).square().sum() * batch[1]


def slope(loss, batch, mode, *, w=None, steps=2):
    """d(end)/d(batch[0])."""
    x = batch[0].clone().requires_grad_()
    w = torch.ones_like(batch[0]) if w is None else w
    end = simulate(loss, {"w": w}, [(x, *batch[1:])] * steps, SGD(lr=0.1), gradient=mode)
    return torch.autograd.grad(end["w"].sum(), x)[0]


def test_the_loss_is_called_to_record_and_then_once_in_each_simulation():
    calls = []

    def loss(params, batch):
        calls.append(1)
        return quadratic(params, batch)

    mode, batch = Traced(), (torch.rand(3, 3), 1.0)
    first = slope(loss, batch, mode)
    recorded = len(calls)
    assert recorded > 0
    assert torch.equal(slope(loss, batch, mode), first)
    slope(loss, batch, mode, steps=4)
    assert len(calls) == recorded + 2  # once in each simulation, to see that it is the same
    for other in (torch.rand(5, 2), torch.rand(3, 3).T):
        recorded = len(calls)
        slope(loss, (other, 1.0), mode)
        assert (
            len(calls) > recorded
        )  # another shape, another stride: what was a view may have to be a copy


def test_numbers_in_the_batch_are_not_taken_from_the_recording():
    mode, x = Traced(), torch.rand(3)
    for factor in (1.0, 2.0):
        torch.testing.assert_close(
            slope(quadratic, (x, factor), mode), slope(quadratic, (x, factor), Traced())
        )
    assert not torch.allclose(slope(quadratic, (x, 1.0), mode), slope(quadratic, (x, 2.0), mode))


def test_one_object_serves_two_losses():
    mode, batch = Traced(), (torch.rand(3), 1.0)
    once = slope(quadratic, batch, mode)
    other = slope(lambda p, b: quadratic(p, b) * 0.5, batch, mode)
    torch.testing.assert_close(slope(quadratic, batch, mode), once)
    assert not torch.allclose(once, other)


def test_a_loss_that_branches_on_values_is_refused():
    def loss(params, batch):
        return quadratic(params, batch) if params["w"].sum() > 0 else params["w"].sum()

    with pytest.raises(SimudyError, match=r"cannot record this loss: use Mixed\(\)"):
        slope(loss, (torch.rand(3), 1.0), Traced())


def test_a_graph_that_gives_other_numbers_is_refused():
    def loss(params, batch):  # the same at every call, but a graph goes on with its generator
        numbers = torch.rand(3, generator=torch.Generator().manual_seed(1))
        return (params["w"].square() * numbers).sum()

    with pytest.raises(SimudyError, match=r"use Mixed\(\)"):
        slope(loss, (torch.rand(3),), Traced())


def test_a_tensor_by_the_back_door_is_refused():
    hidden = torch.ones(3, requires_grad=True)
    with pytest.raises(SimudyError, match="its gradient would be lost"):
        slope(
            lambda p, b: quadratic(p, b) + (p["w"] * hidden).square().sum(),
            (torch.rand(3), 1.0),
            Traced(),
        )


def test_factored_weights_are_refused():
    model = StatelessModel(nn.Linear(4, 2))
    batches = [(torch.randn(3, 4), torch.arange(3) % 2)]
    with pytest.raises(SimudyError, match=r"use Mixed\(\) inside"):
        simulate(
            model.loss, model.params, batches, SGD(), gradient=Factored(Traced(), layers="all")
        )


def test_what_nobody_reads_is_not_computed():
    torch.manual_seed(0)
    model = StatelessModel(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 2, 3), nn.Flatten())
    )
    mode = Traced()
    x = torch.randn(2, 1, 6, 6, requires_grad=True)
    end = simulate(model.loss, model.params, [(x, torch.arange(2))] * 2, SGD(), gradient=mode)
    torch.autograd.grad(sum((v.square().sum() for v in end.values()), torch.zeros(())), x)
    (recording,) = mode.graphs.values()
    for run in (recording.value, *recording.pullbacks.values()):
        assert isinstance(run, partial)
        for node in run.args[0].graph.nodes:
            if node.target is torch.ops.aten.convolution_backward.default:
                assert {u.args[1] for u in node.users if u.target is getitem} == {
                    i for i, wanted in enumerate(node.args[-1]) if wanted
                }


@pytest.mark.parametrize("adjoint", [Direct(), Recompute(2)])
@pytest.mark.parametrize("compile", [None, pytest.param("default", marks=needs_compiler)])
def test_recorded_anywhere_the_slope_is_right_the_next_time_too(adjoint, compile):
    torch.manual_seed(0)
    model = StatelessModel(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double())
    mode, labels = Traced(compile=compile), torch.arange(3) % 2
    for _ in range(2):
        x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        slopes = []
        for gradient in (mode, Mixed()):
            end = simulate(
                model.loss,
                model.params,
                [(x, labels)] * 5,
                SGD(lr=0.3),
                adjoint=adjoint,
                gradient=gradient,
            )
            slopes.append(torch.autograd.grad(end["2.weight"].square().sum(), x)[0])
        torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-14)


def test_vmap_over_dummies():
    model = StatelessModel(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double())
    labels, many = torch.arange(3) % 2, torch.randn(5, 3, 4, dtype=torch.float64)

    def end(images, mode):
        return simulate(
            model.loss, model.params, [(images, labels)] * 2, SGD(lr=0.1), gradient=mode
        )["0.weight"]

    mode = Traced()
    alone = torch.stack([end(images, mode) for images in many])
    torch.testing.assert_close(torch.func.vmap(lambda images: end(images, mode))(many), alone)
    torch.testing.assert_close(torch.func.vmap(lambda images: end(images, Traced()))(many), alone)


@needs_compiler
def test_compiled_graphs_give_the_same_slopes():
    batch, mode = (torch.rand(3), 1.0), Traced(compile="reduce-overhead")
    torch.testing.assert_close(
        slope(quadratic, batch, mode), slope(quadratic, batch, Traced()), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("compile", [None, pytest.param("default", marks=needs_compiler)])
def test_second_derivatives_of_the_result(compile):
    torch.manual_seed(0)
    x = torch.rand(3, dtype=torch.float64, requires_grad=True)
    mode = Traced(compile=compile)

    def end(x):
        return simulate(
            quadratic, {"w": torch.ones_like(x)}, [(x, 1.0)] * 2, SGD(lr=0.1), gradient=mode
        )["w"].sum()

    assert torch.autograd.gradgradcheck(end, x)
