"""M_lin equals the plain mean over pairs of epochs, whatever represents the gradients, and grows
with width.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simudy.analysis.linearity import linearity, run_linearity
from simudy.dynamics.gradient import Gradient, Mixed, Reverse
from simudy.dynamics.gradient.factored import Factored
from simudy.dynamics.model import StatelessModel
from simudy.dynamics.optim import SGD, Adam, Rule
from simudy.dynamics.recipe import Recipe
from simudy.errors import SimudyError
from simudy.victim.models import CNN, MLP

SHAPE, CLASSES = (1, 8, 8), 3


pytestmark = pytest.mark.usefixtures("float64")


def data(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.arange(
        n
    ) % CLASSES


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return {"mlp": MLP, "cnn": CNN}[name](SHAPE, CLASSES, width=8).eval()


def brute_force(
    module: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, batch_size: int, lr: float
) -> Tensor:
    """A plain torch loop and every pair of epochs."""
    optimizer, met = torch.optim.SGD(module.parameters(), lr=lr), []
    for _ in range(epochs):
        met.append(
            [
                flat_gradient(module, images[i : i + 1], labels[i : i + 1])
                for i in range(len(images))
            ]
        )
        for rows in torch.arange(len(images)).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(module(images[rows]), labels[rows]).backward()
            optimizer.step()
    pairs = [(s, t) for t in range(epochs) for s in range(t)]
    cosines = [
        [F.cosine_similarity(met[s][i], met[t][i], dim=0) for s, t in pairs]
        for i in range(len(images))
    ]
    return torch.tensor([[float(c) for c in row] for row in cosines]).mean(1)


def flat_gradient(module: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    grads = torch.autograd.grad(F.cross_entropy(module(image), label), list(module.parameters()))
    return torch.cat([g.flatten() for g in grads])


MODES: list[Gradient] = [Reverse(), Mixed(), Factored(), Factored(layers="all")]


@pytest.mark.parametrize("gradient", MODES)
@pytest.mark.parametrize("batch_size", [6, 4])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_it_is_the_mean_over_pairs_of_epochs(name: str, batch_size: int, gradient: Gradient):
    model, (images, labels) = StatelessModel(network(name)), data()
    recipe = Recipe(SGD(lr=0.3), epochs=5, batch_size=batch_size)
    found = linearity(model.loss, model.params, images, labels, recipe, gradient=gradient)
    expected = brute_force(network(name), images, labels, epochs=5, batch_size=batch_size, lr=0.3)
    torch.testing.assert_close(found.per_sample, expected, rtol=1e-10, atol=1e-12)
    assert found.m_lin == pytest.approx(expected.mean().item())
    assert expected.min() < 0.98  # far enough from the trivial 1


@pytest.mark.parametrize("rule", [SGD(lr=0.0), Adam(lr=0.0)])
def test_a_network_that_stays_put_is_perfectly_linear(rule: Rule):
    model, (images, labels) = StatelessModel(network("mlp")), data()
    assert linearity(
        model.loss, model.params, images, labels, Recipe(rule, epochs=3)
    ).m_lin == pytest.approx(1.0)


def test_a_gradient_of_exactly_zero_has_no_direction():
    """With weights of zero in the loss, sample gradients vanish: cosines count as 0, nothing is
    NaN.
    """
    model, (images, labels) = StatelessModel(network("mlp")), data()
    found = linearity(
        lambda p, b: 0.0 * model.loss(p, b), model.params, images, labels, Recipe(SGD(), epochs=3)
    )
    assert found.per_sample.tolist() == [0.0] * 6


def test_wider_is_more_linear():
    images, labels = data(12)
    found = []
    for width in (10, 30, 100):
        torch.manual_seed(0)
        found.append(
            run_linearity(
                MLP(SHAPE, CLASSES, width=width), images, labels, Recipe(SGD(lr=0.1), epochs=20)
            )
        )
    assert found[0]["m_lin"] < found[1]["m_lin"] < found[2]["m_lin"]


def test_the_task_returns_plain_data():
    images, labels = data()
    module = network("mlp")
    before = [p.detach().clone() for p in module.parameters()]
    found = run_linearity(module, images, labels, Recipe(SGD(lr=0.1), epochs=3))
    assert set(found) == {"m_lin", "m_lin_per_sample", "n", "epochs", "parameters", "seconds"}
    assert (found["n"], found["epochs"], found["parameters"]) == (6, 3, 64 * 8 + 8 + 8 * 8 + 8 * 3)
    assert found["m_lin"] == pytest.approx(sum(found["m_lin_per_sample"]) / 6)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_one_epoch_cannot_be_compared():
    model = StatelessModel(network("mlp"))
    with pytest.raises(SimudyError, match="give 2 or more"):
        linearity(model.loss, model.params, *data(), Recipe(epochs=1))


def test_batch_statistics_are_refused():
    with pytest.raises(SimudyError, match=r"call module\.eval\(\)"):
        run_linearity(
            nn.Sequential(nn.BatchNorm2d(1), network("mlp")).train(), *data(), Recipe(epochs=2)
        )
