"""Factored: however a loss uses a weight, the run is that of a plain loop."""

import pytest
import torch
import torch.nn.functional as F

from simudy import SGD, Direct, Factored, Mixed, Recompute, SimudyError, StatelessModel, simulate
from simudy.dynamics import tree
from simudy.dynamics.gradient.factored_weight import FactoredWeight


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def start():
    return {"w": draw(5, 4), "v": draw(3, 5, seed=1), "b": draw(5, seed=2)}


def batches(how, which):
    """Three of the same shapes; how the loss uses its weight is said in the batch."""
    data = [(draw(3, 4, seed=s), draw(3, 3, seed=s + 9)) for s in (3, 4, 5)]
    return [(*batch, how if t in which else "plain") for t, batch in enumerate(data)]


SPLIT = draw(5, 4, seed=7)
LOW = draw(5, 1, seed=8) @ draw(1, 4, seed=9)
# what goes into the layer, and what is added to the loss
USES = {
    "plain": lambda x, w, b: (F.linear(x, w, b), 0.0),
    "by keyword": lambda x, w, b: (F.linear(input=x, weight=w, bias=b), 0.0),
    "halved": lambda x, w, b: (F.linear(x, 0.5 * w, b), 0.0),
    "divided": lambda x, w, b: (F.linear(x, w / 3, b), 0.0),
    "negated": lambda x, w, b: (F.linear(x, -w), 0.0),
    "doubled": lambda x, w, b: (F.linear(x, w + w, b), 0.0),
    "an update added": lambda x, w, b: (F.linear(x, w + LOW, b), 0.0),
    "subtracted": lambda x, w, b: (F.linear(x, SPLIT - w, b), 0.0),
    "times x": lambda x, w, b: (x @ w.T + b, 0.0),
    "matmul": lambda x, w, b: (torch.matmul(x, w.transpose(0, 1)), 0.0),
    "einsum": lambda x, w, b: (torch.einsum("ni,oi->no", x, w), 0.0),
    "addmm": lambda x, w, b: (torch.addmm(b, x, w.t()), 0.0),
    "indexed": lambda x, w, b: (F.linear(x, w[[4, 3, 2, 1, 0]], b), 0.0),
    "viewed": lambda x, w, b: (F.linear(x, w.view(4, 5).reshape(5, 4)), 0.0),
    "in parts": lambda x, w, b: (torch.cat([F.linear(x, part) for part in w.split(2)], 1), 0.0),
    "unpacked": lambda x, w, b: (torch.stack([x @ row for row in w], 1), 0.0),
    "stacked": lambda x, w, b: (F.linear(x, torch.stack([w, w]).sum(0)), 0.0),
    "standardised": lambda x, w, b: (F.linear(x, w - w.mean(1, keepdim=True), b), 0.0),
    "twice": lambda x, w, b: (F.linear(x, w, b) + F.linear(x.cos(), w), 0.0),
    "on other rows": lambda x, w, b: (F.linear(x[:1], w, b).expand(3, 5), 0.0),
    "not at all": lambda x, w, b: (x.new_ones(3, 5) * b, 0.0),
    "its shape alone": lambda x, w, b: (
        F.linear(x, w, b) / (w.shape[1] + w.size(0) + w.dim() + w.numel() + len(w)),
        0.0,
    ),
    "held": lambda x, w, b: (F.linear(x, w, b) + F.linear(x, w.detach()), 0.0),
    "penalty": lambda x, w, b: (F.linear(x, w, b), w.square().sum()),
    "norm": lambda x, w, b: (F.linear(x, w, b), torch.linalg.vector_norm(w)),
    "inner product": lambda x, w, b: (F.linear(x, w, b), tree.dot({"w": w}, {"w": w})),
    "norm of a tree": lambda x, w, b: (F.linear(x, w, b), tree.norm({"w": w, "b": b})),
    "leaves of a tree": lambda x, w, b: (F.linear(x, w, b), tree.leaves([w])[0].sin().sum()),
    "rebuilt": lambda x, w, b: (
        F.linear(x, tree.rebuild([w], [2 * t for t in tree.leaves(w)])[0]),
        0.0,
    ),
    "under torch.func": lambda x, w, b: (
        F.linear(x, w, b),
        torch.func.vmap(lambda row: row.sin().sum())(w).sum(),
    ),
    "gradient inside": lambda x, w, b: (
        F.linear(x, w, b),
        torch.func.grad(lambda u: u.sin().sum())(w).square().sum(),
    ),
}
WAYS = [
    (adjoint, gradient)
    for adjoint in (Direct(), Recompute(2))
    for gradient in (Factored(layers="all"), Factored(Mixed(), layers="all"))
]


def loss(params, batch):
    x, y, how = batch
    z, more = USES[how](x, params["w"], params["b"])
    return (F.linear(z.tanh(), params["v"]) - y).square().mean() + 0.1 * more


def plain(theta, data, lr=0.3):
    for batch in data:
        theta = {k: p if p.requires_grad else p.clone().requires_grad_() for k, p in theta.items()}
        grads = torch.autograd.grad(
            loss(theta, batch), list(theta.values()), create_graph=True, allow_unused=True
        )
        moves = zip(theta.items(), grads, strict=True)
        theta = {k: p if g is None else p - lr * g for (k, p), g in moves}
    return theta


def slopes(run, how, which):
    theta = {k: p.requires_grad_() for k, p in start().items()}
    data = [(x.requires_grad_(), y, h) for x, y, h in batches(how, which)]
    end = run(theta, data)
    inputs = [*theta.values(), *(x for x, *_ in data)]
    norms = [tree.dot({"p": p}, {"p": p}) for p in end.values()]
    value = sum(((i + 1.0) * norm for i, norm in enumerate(norms)), torch.zeros(()))
    grads = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
    return [*(p.dense() if isinstance(p, FactoredWeight) else p for p in end.values()), *grads]


@pytest.mark.parametrize(("adjoint", "gradient"), WAYS)
@pytest.mark.parametrize("which", [(0, 1, 2), (1,), (0,)])
@pytest.mark.parametrize("how", USES)
def test_any_use_of_a_weight_is_felt(how, which, adjoint, gradient):
    def ours(theta, data):
        rule = SGD(lr=0.3)
        return simulate(loss, theta, data, rule, adjoint=adjoint, gradient=gradient)

    found, expected = (slopes(run, how, which) for run in (ours, plain))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("how", ["plain", "by keyword", "twice", "its shape alone"])
def test_a_weight_used_by_linear_alone_is_factored(how):
    end = simulate(loss, start(), batches(how, (0, 1, 2)), SGD(), gradient=Factored(layers="all"))
    assert {k for k, p in end.items() if isinstance(p, FactoredWeight)} == {"w", "v"}


def test_a_weight_used_otherwise_is_dense():
    end = simulate(loss, start(), batches("halved", (0,)), SGD(), gradient=Factored(layers="all"))
    assert {k for k, p in end.items() if isinstance(p, FactoredWeight)} == {"v"}


def test_momentum_and_decay_after_a_use_that_only_a_later_batch_makes():
    rule = SGD(lr=0.1, momentum=0.9, weight_decay=0.01)
    data = batches("penalty", (1,))
    ours = simulate(loss, start(), data, rule, gradient=Factored(layers="all"))
    theirs = simulate(loss, start(), data, rule)
    assert isinstance(ours["w"], FactoredWeight)
    torch.testing.assert_close(ours["w"].dense(), theirs["w"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", [Factored(layers="all"), Factored(Mixed(), layers="all")])
@pytest.mark.parametrize("how", ["plain", "penalty"])
def test_vmap_over_where_the_run_begins(gradient, how):
    many = {k: torch.stack([p, 0.5 * p]) for k, p in start().items()}
    data = batches(how, (1,))

    def slope(theta):
        end = simulate(loss, theta, data, SGD(lr=0.3), gradient=gradient)
        return tree.dot(end, end)

    found = torch.func.vmap(torch.func.grad(slope))(many)
    for i in range(2):
        alone = torch.func.grad(slope)({k: p[i] for k, p in many.items()})
        for k, p in alone.items():
            torch.testing.assert_close(found[k][i], p, rtol=1e-10, atol=1e-12)


def test_a_loss_that_is_not_the_same_twice_is_refused():
    calls = []

    def fickle(params, batch):
        calls.append(1)
        twice = len(calls) > 2 and len(calls) % 2  # two calls alike, as simulate asks for
        return loss(params, (*batch[:2], "twice" if twice else "plain"))

    with pytest.raises(SimudyError, match=r"another way each time .*use Reverse\(\) or Mixed\(\)"):
        simulate(fickle, start(), batches("plain", ()), SGD(), gradient=Factored(layers="all"))


def test_attention_is_factored_in_its_projections():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = StatelessModel(torch.nn.Sequential(layer, torch.nn.Flatten()).double())
    data = [(draw(3, 2, 8, seed=t), torch.arange(3)) for t in range(2)]
    ours = simulate(model.loss, model.params, data, SGD(), gradient=Factored(layers="all"))
    for name, theirs in simulate(model.loss, model.params, data, SGD()).items():
        mine = ours[name].dense() if isinstance(ours[name], FactoredWeight) else ours[name]
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
