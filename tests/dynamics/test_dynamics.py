"""The toolkit: every adjoint × gradient is exact, pure and as flat in memory as it says."""

import copy

import pytest
import torch
from torch import nn

from simudy import (
    SGD,
    Clipped,
    Direct,
    Factored,
    Mixed,
    Recompute,
    Reverse,
    SimudyError,
    StatelessModel,
    Traced,
    simulate,
)
from simudy.dynamics import tree
from simudy.dynamics.gradient.factored_weight import FactoredWeight

ADJOINTS = [Direct(), Recompute(1), Recompute(3)]
GRADIENTS = [
    Reverse(),
    Mixed(),
    Traced(),
    Factored(layers="all"),
    Factored(Mixed(), layers="all"),
    Factored(),
]
MODES = [(a, g) for a in ADJOINTS for g in GRADIENTS]


def mlp():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(36, 6),
        nn.Tanh(),
        nn.Linear(6, 6, bias=False),
        nn.Tanh(),
        nn.Linear(6, 3),
    )


def conv(*, train=False):
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.Softplus(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    return net.train() if train else net.eval()


class Attention(nn.Module):
    """Two tokens of 18 pixels through torch's own encoder layer."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(
            18, 2, 8, dropout=0.0, activation="gelu", batch_first=True
        )
        self.head = nn.Linear(36, 3)

    def forward(self, images):
        return self.head(self.block(images.reshape(-1, 2, 18)).flatten(1))


NETS = {"mlp": mlp, "conv": conv, "conv-train": lambda: conv(train=True), "attention": Attention}


def problem(net="mlp", *, seed=0):
    torch.manual_seed(seed)
    model = StatelessModel(NETS[net]().double())
    images = torch.randn(6, 1, 6, 6, dtype=torch.float64)
    labels = torch.randn(6, 3, dtype=torch.float64).softmax(1)
    return model, images, labels


def outcome(model, images, labels, theta0, lr, *, adjoint, gradient, rule=None, steps=4):
    """One number every final parameter has a share in; two mini-batches in turn."""
    halves = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    batches = [halves[t % 2] for t in range(steps)]
    rule = rule(lr) if rule else SGD(lr=lr, momentum=0.8, weight_decay=0.01, nesterov=True)
    end = simulate(model.loss, theta0, batches, rule, adjoint=adjoint, gradient=gradient)
    seen = [
        (v * torch.cos(torch.arange(v.numel(), dtype=v.dtype)).view(v.shape)).sum()
        for v in end.values()
    ]
    return sum(seen, torch.zeros(()))


def leaves_of(net):
    model, images, labels = problem(net)
    names = list(model.params)
    leaves = [
        t.clone().requires_grad_()
        for t in (images, labels, torch.tensor(0.3).double(), *model.params.values())
    ]
    return model, names, leaves


def value(model, names, leaves, **how):
    images, labels, lr, *theta0 = leaves
    return outcome(model, images, labels, dict(zip(names, theta0, strict=True)), lr, **how)


RULES = {
    "momentum": None,
    "clipped": lambda lr: Clipped(SGD(lr=lr, momentum=0.5), max_norm=0.3),
    "above-to": lambda lr: Clipped(SGD(lr=lr), max_norm=0.4, rescale_to=0.1),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("rule", RULES)
def test_every_mode_agrees_with_finite_differences_and_with_every_other(net, rule):
    model, names, leaves = leaves_of(net)
    how = {"rule": RULES[rule]}
    torch.manual_seed(1)
    along = [torch.randn_like(leaf) for leaf in leaves]
    expected = []
    for i, direction in enumerate(along):  # images, labels, lr, every tensor of θ0: each on its own
        moved = [
            [
                leaf.detach() + (s * 1e-5 * direction if j == i else 0)
                for j, leaf in enumerate(leaves)
            ]
            for s in (1, -1)
        ]
        ahead, behind = (
            value(model, names, m, adjoint=Direct(), gradient=Reverse(), **how) for m in moved
        )
        expected.append(float((ahead - behind) / 2e-5))
    first = None
    for adjoint, gradient in MODES:
        grads = torch.autograd.grad(
            value(model, names, leaves, adjoint=adjoint, gradient=gradient, **how), leaves
        )
        slopes = [float((g * d).sum()) for g, d in zip(grads, along, strict=True)]
        assert slopes == pytest.approx(expected, rel=1e-6, abs=1e-8), (adjoint, gradient)
        first = first or grads
        assert all(
            torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(grads, first, strict=True)
        )


@pytest.mark.parametrize("net", ["mlp", "conv", "conv-train"])
def test_a_simulated_victim_equals_a_plain_torch_loop(net):
    model, images, labels = problem(net)
    module = copy.deepcopy(NETS[net]()).double()
    module.load_state_dict({**model.params, **model.buffers})
    optimizer = torch.optim.SGD(
        module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True
    )
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.3)
        optimizer.step()
    rule = Clipped(SGD(lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True), max_norm=0.3)
    for gradient in GRADIENTS:
        end = simulate(model.loss, model.params, [(images, labels)] * 10, rule, gradient=gradient)
        for name, theirs in module.named_parameters():
            assert float((end[name] - theirs).detach().abs().max()) <= 1e-12, (gradient, name)


def test_one_rule_per_step_is_a_schedule():
    model, images, labels = problem()
    rates = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64, requires_grad=True)
    end = simulate(
        model.loss, model.params, [(images, labels)] * 3, [SGD(lr=r, momentum=0.9) for r in rates]
    )
    module = copy.deepcopy(model.module)
    module.load_state_dict({**model.params, **model.buffers})
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9)
    for rate in rates.tolist():
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
    for name, theirs in module.named_parameters():
        torch.testing.assert_close(end[name], theirs, rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(tree.dot(end, end), rates)
    assert bool((slope != 0).all())


def test_batchnorm_in_train_mode_leaves_the_module_alone():
    torch.manual_seed(0)
    module = conv(train=True).double()
    before = copy.deepcopy(module.state_dict())
    model = StatelessModel(module)
    simulate(
        model.loss,
        model.params,
        [(torch.randn(6, 1, 6, 6).double(), torch.arange(6) % 3)] * 2,
        SGD(),
    )
    for owner in (module, model.module):
        assert all(torch.equal(v, before[k]) for k, v in owner.state_dict().items())
    assert module[1].track_running_stats


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.1),
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1),
        nn.LSTM(3, 3, num_layers=2, dropout=0.5),
    ],
)
def test_dropout_in_train_mode_is_refused(layer):
    with pytest.raises(SimudyError, match="eval mode"):
        StatelessModel(nn.Sequential(layer).train())
    StatelessModel(nn.Sequential(layer).eval())


@pytest.mark.parametrize(("adjoint", "gradient"), [(Direct(), Mixed()), (Recompute(2), Reverse())])
def test_a_tensor_by_the_back_door_is_refused_not_forgotten(adjoint, gradient):
    model, images, labels = problem()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def loss(params, batch):
        return weight * model.loss(params, batch)

    with pytest.raises(SimudyError, match="gradient would be lost"):
        simulate(loss, model.params, [(images, labels)], SGD(), adjoint=adjoint, gradient=gradient)
    end = simulate(loss, model.params, [(images, labels)], SGD())
    assert torch.autograd.grad(tree.dot(end, end), weight)[0] != 0


def test_bad_counts_are_refused():
    model, images, labels = problem()
    with pytest.raises(SimudyError, match="2 rules for 3 batches"):
        simulate(model.loss, model.params, [(images, labels)] * 3, [SGD()] * 2)
    with pytest.raises(SimudyError, match="1 or more"):
        Recompute(0)


@pytest.mark.parametrize(("adjoint", "gradient"), [(a, g) for a, g in MODES if g != Factored()])
def test_vmap_over_dummies_and_learning_rates(adjoint, gradient):
    model, _, labels = problem()
    images, rates = torch.randn(4, 6, 1, 6, 6).double(), torch.rand(4).double()

    def run(x, lr):
        return outcome(model, x, labels, model.params, lr, adjoint=adjoint, gradient=gradient)

    grads = torch.func.vmap(torch.func.grad(run, argnums=(0, 1)))(images, rates)
    for i in range(4):
        for batched, single in zip(
            grads, torch.func.grad(run, argnums=(0, 1))(images[i], rates[i]), strict=True
        ):
            torch.testing.assert_close(batched[i], single, rtol=1e-9, atol=1e-12)


def kept_bytes(root):
    """Bytes of the distinct storages that the graph under ``root`` holds for its backward pass."""
    todo, seen, storages = [root.grad_fn], set(), {}
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        saved = [getattr(node, a) for a in dir(node) if a.startswith("_saved_")] + list(
            getattr(node, "saved_tensors", ())
        )
        for t in (
            t
            for s in saved
            for t in (s if isinstance(s, (tuple, list)) else (s,))
            if isinstance(t, torch.Tensor)
        ):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        todo += [n for n, _ in node.next_functions]
    return sum(storages.values())


def test_mixed_keeps_one_theta_per_step_and_recompute_one_per_segment():
    torch.manual_seed(0)
    model = StatelessModel(conv())
    images, labels = torch.randn(6, 1, 6, 6).requires_grad_(), torch.arange(6) % 3
    theta = sum(p.numel() * p.element_size() for p in model.params.values())

    def kept(steps, adjoint, gradient):
        end = simulate(
            model.loss,
            model.params,
            [(images, labels)] * steps,
            SGD(),
            adjoint=adjoint,
            gradient=gradient,
        )
        return kept_bytes(sum(v.sum() for v in end.values()))

    per_step = (kept(16, Direct(), Mixed()) - kept(8, Direct(), Mixed())) / 8
    per_segment = (kept(32, Recompute(8), Reverse()) - kept(16, Recompute(8), Reverse())) / 2
    assert (
        theta <= per_step <= theta + 8 * len(model.params)
    )  # and the learning rate, once per tensor
    assert theta <= per_segment <= theta + 8 * len(model.params)
    assert (
        kept(16, Direct(), Reverse()) - kept(8, Direct(), Reverse()) > 16 * theta
    )  # what the others are spared


# --- factored weights


def test_factored_weights_are_never_formed(monkeypatch):
    model, images, labels = problem()
    target = tree.map(torch.randn_like, model.params)
    dense = tree.sub(
        simulate(model.loss, model.params, [(images, labels)] * 3, SGD(lr=0.3)), model.params
    )

    def refuse(self):
        raise AssertionError("the weight was formed")

    monkeypatch.setattr(FactoredWeight, "dense", refuse)
    end = simulate(
        model.loss,
        model.params,
        [(images, labels)] * 3,
        SGD(lr=0.3),
        gradient=Factored(layers="all"),
    )
    moved = tree.sub(end, model.params)
    assert sum(isinstance(v, FactoredWeight) for v in moved.values()) == 3
    torch.testing.assert_close(tree.dot(moved, target), tree.dot(dense, target))
    torch.testing.assert_close(tree.dot(target, moved), tree.dot(dense, target))
    torch.testing.assert_close(tree.norm(moved), tree.norm(dense))


def test_factored_leaves_dense_what_a_factor_cannot_hold():
    model, images, labels = problem("attention")
    chosen = Factored(layers="all").chosen(model.loss, model.params, [(images, labels)])
    assert "head.weight" in chosen
    assert not any("bias" in name for name in chosen)
    many = [(images, labels)] * 50
    assert Factored().chosen(model.loss, model.params, many) == []


def test_factored_refuses_elementwise_rules():
    from simudy import Adam

    model, images, labels = problem()
    with pytest.raises(SimudyError, match=r"Adam acts on each weight entry alone.*Mixed"):
        simulate(model.loss, model.params, [(images, labels)], Adam(), gradient=Factored())


def test_any_other_operation_forms_the_weight():
    model, images, labels = problem()
    end = simulate(
        model.loss, model.params, [(images, labels)], SGD(lr=0.3), gradient=Factored(layers="all")
    )
    dense = simulate(model.loss, model.params, [(images, labels)], SGD(lr=0.3))
    for name, weight in end.items():
        torch.testing.assert_close(weight.flatten().abs(), dense[name].flatten().abs())
        assert weight.shape == dense[name].shape
        assert weight.dtype == dense[name].dtype
