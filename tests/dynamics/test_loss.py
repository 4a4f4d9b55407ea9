"""The loss is one pure function: draws and hidden state are refused, whatever makes them."""

from __future__ import annotations

import random
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from simudy import SGD, Direct, Factored, Mixed, Recompute, Reverse, SimudyError, StatelessModel
from simudy import simulate as run
from simudy.dynamics.gradient import Traced

LABELS = torch.tensor([0, 1, 2])
MODES = [
    (Direct(), Reverse()),
    (Direct(), Mixed()),
    (Recompute(1), Reverse()),
    (Direct(), Traced()),
    (Direct(), Factored(layers="all")),
]
OWN, TORCHS_OWN, PYTHONS_OWN = np.random.default_rng(0), torch.Generator(), random.Random(0)


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.body, self.function = nn.Linear(4, 3).double(), function

    def forward(self, x):
        return self.function(self.body, x)


DRAWS = {
    "noise": lambda f, x: f(x + torch.randn_like(x)),
    "dropout": lambda f, x: F.dropout(f(x), 0.5, True),
    "stochastic depth": lambda f, x: f(x) * torch.bernoulli(torch.tensor(0.5)),
    "gumbel": lambda f, x: F.gumbel_softmax(f(x)),
    "rrelu": lambda f, x: F.rrelu(f(x) - 3, training=True),
    "permutation": lambda f, x: f(x[torch.randperm(3)]),
    "in place": lambda f, x: f(x) * torch.empty(3, 3).uniform_(),
    "numpy": lambda f, x: f(x) * np.random.rand(),  # noqa: NPY002
    "Python": lambda f, x: f(x) * random.random(),
    "numpy, a generator of one's own": lambda f, x: f(x) * OWN.random(),
    "torch, a generator of one's own": lambda f, x: f(x) * torch.rand(3, generator=TORCHS_OWN),
    "Python, a generator of one's own": lambda f, x: f(x) * PYTHONS_OWN.random(),
}


def simulate(loss, params, images, mode=MODES[0]):
    batches = [(images, LABELS)] * 3
    return run(loss, params, batches, SGD(lr=0.1), adjoint=mode[0], gradient=mode[1])


def images(*more: int) -> torch.Tensor:
    return torch.randn(*more, 3, 4, dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("kind", DRAWS)
def test_a_draw_is_refused_whatever_makes_it(kind, mode):
    for seed in range(3):
        random.seed(seed)
        model = StatelessModel(Net(DRAWS[kind]))
        with pytest.raises(SimudyError, match="the same every time"):
            simulate(model.loss, model.params, images(), mode)


@pytest.mark.parametrize("kind", DRAWS)
def test_a_draw_is_refused_under_vmap(kind):
    model = StatelessModel(Net(DRAWS[kind]))
    with pytest.raises(SimudyError, match="the same every time"):
        torch.func.vmap(lambda x: simulate(model.loss, model.params, x))(images(2))


def test_a_draw_of_a_bare_loss_and_of_a_later_step_are_refused():
    def noisy(params, batch):
        return (batch[0] @ params["w"] + torch.randn(())).square().sum()

    def later(params, batch):  # one that the first batch does not show
        noise = np.random.rand() if batch[1] else 0.0  # noqa: NPY002
        return ((batch[0] @ params["w"]) + noise).square().sum()

    params = {"w": torch.randn(4, dtype=torch.float64)}
    with pytest.raises(SimudyError, match=r"torch's generator.*the same every time"):
        run(noisy, params, [(images(),)], SGD(lr=0.1))
    with pytest.raises(SimudyError, match=r"numpy's random.*the same every time"):
        run(later, params, [(images(), False), (images(), True)], SGD(lr=0.1))


def test_state_kept_from_call_to_call_is_refused():
    calls = []

    def loss(params, batch):
        calls.append(1)
        return (params["w"] * len(calls)).square().sum()

    with pytest.raises(SimudyError, match="keep no state"):
        run(loss, {"w": torch.ones(2)}, [()], SGD(lr=0.1))
    with pytest.raises(SimudyError, match="keep no state"):  # and is not taken for checked
        run(loss, {"w": torch.ones(2)}, [()], SGD(lr=0.1))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_what_does_not_draw_passes(mode):
    calm = {
        "eval": lambda f, x: F.dropout(f(x), 0.5, False),
        "rate 0": lambda f, x: F.dropout(f(x), 0.0, True),
    }
    for function in calm.values():
        model = StatelessModel(Net(function))
        x, before = images(), (torch.get_rng_state(), random.getstate())
        simulate(model.loss, model.params, x, mode)
        assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_what_another_thread_draws_is_not_held_against_the_loss():
    model, stop = StatelessModel(Net(lambda f, x: f(x))), threading.Event()
    drawer = threading.Thread(
        target=lambda: [torch.randn(1000) for _ in iter(stop.is_set, True)], daemon=True
    )
    drawer.start()
    try:
        for _ in range(20):
            simulate(model.loss, model.params, torch.ones(3, 4, dtype=torch.float64))
    finally:
        stop.set()
        drawer.join()


REFUSED = {
    "item": (lambda f, x: f(x) * f(x).sum().item(), "item"),
    "float": (lambda f, x: f(x) * float(f(x).sum()), "__float__"),
    "tolist": (lambda f, x: f(x) * sum(f(x).sum(0).tolist()), "tolist"),
    "checkpoint": (lambda f, x: checkpoint(f, x, use_reentrant=False), r"Recompute\(\)"),
    "reentrant": (lambda f, x: checkpoint(f, x, use_reentrant=True), r"Recompute\(\)"),
    "tuple": (lambda f, x: (f(x),), "criterion="),
}


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_followed_is_one_line_that_names_the_remedy(kind, mode):
    function, remedy = REFUSED[kind]
    model = StatelessModel(Net(function))
    with pytest.raises(SimudyError, match=remedy) as error:
        simulate(model.loss, model.params, images().requires_grad_(), mode)
    assert "Mixed()" not in str(error.value)  # which fails alike


def test_a_detached_number_may_be_read():
    seen = []

    def logged(f, x):
        seen.append(f(x).sum().detach().item())
        return f(x)

    model = StatelessModel(Net(logged))
    simulate(model.loss, model.params, images())
    assert len(seen) >= 3


@pytest.mark.parametrize("value", [None, 1.0, torch.ones(3), torch.tensor(1)], ids=str)
def test_a_loss_that_is_no_real_scalar_is_refused(value):
    with pytest.raises(SimudyError, match="one real number"):
        run(lambda params, batch: value, {"w": torch.ones(2)}, [()], SGD(lr=0.1))


def scripted(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(layer, torch.randn(2, 4))
    assert isinstance(traced, nn.Module)
    return traced


def test_modules_that_hide_their_parameters_are_refused():
    layer = nn.Linear(4, 3)
    closed = {
        "module": lambda: nn.DataParallel(layer),
        "Python module": lambda: scripted(layer),
        "_orig_mod": lambda: torch.compile(layer),
        "once on a batch": lambda: nn.LazyLinear(3),
    }
    for remedy, make in closed.items():
        with pytest.raises(SimudyError, match=remedy):
            StatelessModel(nn.Sequential(make()))
