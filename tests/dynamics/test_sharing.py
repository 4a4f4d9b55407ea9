"""One tensor in several places of a run: its derivative is the sum over all of them."""

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
from simudy.testing import directional

WAYS = [
    (adjoint, gradient)
    for adjoint in (Direct(), Recompute(2))
    for gradient in (
        Reverse(),
        Mixed(),
        Traced(),
        Factored(layers="all"),
        Factored(Mixed(), layers="all"),
    )
]
MODEL = StatelessModel(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double())


def inputs():
    """A square of weights and a row, to be put wherever the case says."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((4, 4), (4,))]


def proximal(params, batch):
    """Fits images and stays near the tensors in the batch."""
    images, labels, centre = batch
    near = sum((p - centre[name]).square().sum() for name, p in params.items() if name in centre)
    return MODEL.loss(params, (images, labels)) + 0.3 * near


def images_among_params(params, batch):
    return MODEL.loss(params, batch) + params["0.weight"].square().mean()


LABELS = torch.arange(4)
CASES = {
    "in params and in the batch": lambda w, b: (
        proximal,
        {**MODEL.params, "0.weight": w, "0.bias": b},
        [(MODEL.params["2.weight"], LABELS, {"0.weight": w, "0.bias": b})] * 3,
    ),
    "the parameters as the batch": lambda w, b: (
        lambda params, centre: (
            sum((p - centre[k]).sin().sum() for k, p in params.items())
            + (params["w"] @ params["b"]).square().sum()
        ),
        start := {"w": w, "b": b},
        [start] * 3,
    ),
    "twice in params": lambda w, b: (
        MODEL.loss,
        {"0.weight": w, "0.bias": b, "2.weight": w, "2.bias": b},
        [(MODEL.params["2.weight"], LABELS)] * 3,
    ),
    "weights that are images": lambda w, b: (
        images_among_params,
        {**MODEL.params, "0.weight": w, "0.bias": b},
        [(w, LABELS), (w + 1, LABELS), (w, LABELS)],
    ),
    "twice in a batch": lambda w, b: (
        proximal,
        MODEL.params,
        [(w, LABELS, {"2.weight": w, "2.bias": b})] * 2 + [(w, LABELS, {"0.bias": b})],
    ),
}


@pytest.mark.parametrize(("adjoint", "gradient"), WAYS)
@pytest.mark.parametrize("case", CASES)
def test_the_derivative_is_the_sum_over_places(case, adjoint, gradient):
    def outcome(given, run):
        loss, params, batches = CASES[case](*given)
        end = run(loss, params, batches)
        seen = ((i + 1.0) * p.cos().sum() for i, p in enumerate(end.values()))
        return sum(seen, torch.zeros(()))

    def ours(loss, params, batches):
        return simulate(loss, params, batches, SGD(lr=0.2), adjoint=adjoint, gradient=gradient)

    given = [leaf.requires_grad_() for leaf in inputs()]
    slopes = torch.autograd.grad(outcome(given, ours), given)
    for mine, theirs in zip(slopes, torch.autograd.grad(outcome(given, plain), given), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    along = [torch.cos(torch.arange(x.numel()) + 1.0).view_as(x).double() for x in given]
    expected = directional(lambda at: outcome(at, ours), given, along, step=1e-4)
    assert sum(float((s * d).sum()) for s, d in zip(slopes, along, strict=True)) == pytest.approx(
        expected, rel=1e-8
    )


def plain(loss, params, batches):
    for batch in batches:
        # a copy of each place, for torch too sums over the places of one tensor
        places = {
            k: p * 1 if p.requires_grad else p.clone().requires_grad_() for k, p in params.items()
        }
        grads = torch.autograd.grad(loss(places, batch), list(places.values()), create_graph=True)
        params = {k: p - 0.2 * g for (k, p), g in zip(params.items(), grads, strict=True)}
    return params
