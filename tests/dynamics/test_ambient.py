"""What surrounds a simulation: autocast, which its backward pass re-enters, and other threads."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from simudy import (
    SGD,
    Direct,
    Factored,
    Mixed,
    Recompute,
    Reverse,
    StatelessModel,
    Traced,
    simulate,
)
from simudy.dynamics import tree

WAYS = [
    (adjoint, gradient)
    for adjoint in (Direct(), Recompute(2))
    for gradient in (Reverse(), Mixed(), Traced(), Factored(layers="all"))
]


def cubic(params, batch):
    """Ten times as steep under autocast, which makes the product bfloat16."""
    z = params["w"] @ batch[0]
    return (10.0 if z.dtype == torch.bfloat16 else 1.0) * (params["v"] * z.double() ** 3).sum()


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(("adjoint", "gradient"), WAYS)
def test_the_backward_pass_sees_the_autocast_of_the_simulation(adjoint, gradient, inside):
    """Numbers that bfloat16 holds, so that nothing but the factor differs from a plain loop."""
    x = torch.tensor([1.0, 0.5], requires_grad=True)
    start = {"w": torch.eye(2), "v": torch.ones(2, dtype=torch.float64)}

    def slope(end):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not inside):
            return torch.autograd.grad(end["v"].sum(), x)[0]

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
        ours = simulate(cubic, start, [(x,)], SGD(lr=0.125), adjoint=adjoint, gradient=gradient)
    factor = 10.0 if inside else 1.0  # v moves by −0.125 · factor · x³
    torch.testing.assert_close(slope(ours), -0.375 * factor * x.detach() ** 2)


@pytest.mark.parametrize(("adjoint", "gradient"), WAYS)
def test_under_autocast_every_way_rounds_alike(adjoint, gradient):
    model = StatelessModel(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
    x, labels = torch.randn(5, 6, requires_grad=True), torch.arange(5) % 3

    def slope(adjoint, gradient):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            end = simulate(
                model.loss,
                model.params,
                [(x, labels)] * 3,
                SGD(lr=0.5),
                adjoint=adjoint,
                gradient=gradient,
            )
        return torch.autograd.grad(tree.norm(end), x)[0]

    ours, paper = slope(adjoint, gradient), slope(Direct(), Reverse())
    assert (ours - paper).norm() < 5e-3 * paper.norm()


def attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return StatelessModel(nn.Sequential(layer.eval(), nn.Flatten(), nn.Linear(24, 3)).double())


def in_threads(job, count=4):
    """``job(wait)`` in several threads at once, ``wait`` being where they meet."""
    wait = Barrier(count, timeout=20).wait
    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(job, wait) for _ in range(count)]]


@pytest.mark.parametrize("gradient", [Reverse(), Mixed(), Traced(), Factored(Mixed())])
def test_threads_agree_with_one_and_leave_torch_as_it_was(gradient):
    model, labels = attention(), torch.arange(4) % 3
    images = torch.randn(4, 3, 8, dtype=torch.float64)
    settings = (
        torch.backends.mha.get_fastpath_enabled,
        torch.backends.cuda.flash_sdp_enabled,
        torch.backends.cuda.mem_efficient_sdp_enabled,
    )
    before = [setting() for setting in settings]

    def job(wait=lambda: None):
        x, found = images.clone().requires_grad_(), []
        for _ in range(3):
            wait()
            end = simulate(
                model.loss, model.params, [(x, labels)] * 2, SGD(lr=0.1), gradient=gradient
            )
            found.append(torch.autograd.grad(end["2.weight"].square().sum(), x)[0])
        return torch.stack(found)

    alone = job()
    for found in in_threads(job):
        torch.testing.assert_close(found, alone)
    assert [setting() for setting in settings] == before


class Waiting(nn.Module):
    """Its own inner module, with stops on the way in and out."""

    def __init__(self, inner, stops):
        super().__init__()
        self.inner, self.stops, self.on = inner, stops, False

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        for stop in self.stops if self.on else ():
            stop()
        return self.inner(x)


def test_attention_that_overlaps_between_threads_leaves_torch_as_it_was():
    """Who comes in first goes out first: each used to restore what it had found on its way in."""
    images, meet = torch.randn(4, 3, 8, dtype=torch.float64), Barrier(2, timeout=20).wait
    before = torch.backends.mha.get_fastpath_enabled()

    def run(stops, after):
        module = Waiting(attention().module, stops)
        model = StatelessModel(module)
        module.on = True
        model(model.params, images)
        for stop in after:
            stop()

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(run, (meet,), (meet,)), pool.submit(run, (meet, meet), ())]:
            job.result()
    assert torch.backends.mha.get_fastpath_enabled() == before
