"""TorchOpt, higher and torch.optim as sources of rules: what they get right, and proof of what they
get wrong.
"""

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simudy.dynamics import tree
from simudy.dynamics.adjoint import Recompute
from simudy.dynamics.gradient import Mixed
from simudy.dynamics.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Averaged,
    Clipped,
    Groups,
    Higher,
    Lion,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    TorchOpt,
    from_torch,
    with_backend,
)
from simudy.dynamics.optim.interop.from_torch import _STATES
from simudy.dynamics.simulate import simulate
from simudy.errors import SimudyError
from simudy.testing import check_optimizer, directional, problems

RULES = {
    "sgd": SGD(lr=0.1),
    "sgd momentum": SGD(lr=0.1, momentum=0.9, dampening=0.4, weight_decay=0.01),
    "sgd nesterov": SGD(lr=0.1, momentum=0.9, nesterov=True),
    "sgd maximize": SGD(lr=0.1, momentum=0.9, weight_decay=0.01, maximize=True),
    "adam": Adam(lr=0.01, weight_decay=0.1, eps=1e-12),
    "amsgrad": Adam(lr=0.01, beta2=0.5, amsgrad=True, eps=1e-12),
    "adamw": AdamW(lr=0.01, weight_decay=0.1),
    "radam": RAdam(lr=0.01, weight_decay=0.1),
    "adamax": Adamax(lr=0.01, weight_decay=0.1),
    "rmsprop": RMSprop(momentum=0.5, weight_decay=0.1),
    "rmsprop centered": RMSprop(centered=True),
    "adagrad": Adagrad(lr=0.1, weight_decay=0.1, initial_accumulator_value=0.1),
    "adagrad decay": Adagrad(lr=0.1, lr_decay=0.1),
    "adadelta": Adadelta(weight_decay=0.1),
    "clipped average": Averaged(Clipped(SGD(lr=0.1), max_norm=0.3), decay=0.5),
    "groups": Groups({"*bias": SGD(lr=0.2), "*": Adagrad()}),
}
LACKING = {
    "torchopt": {"amsgrad"},
    "higher": {"sgd maximize", "adamw", "radam", "rmsprop centered"},
}
PAIRS = [
    (name, backend) for backend, lacks in LACKING.items() for name in RULES if name not in lacks
]


def _hypergradients(rule) -> tuple[dict, list[Tensor]]:
    """End of a run of seven steps, and the gradient of a function of it by the images, under the
    hardest mode.
    """
    problem = problems(steps=7)[0]
    images = [x.clone().requires_grad_() for x in problem.inputs()["images"]]
    end = problem.run(rule, {"images": images}, (Recompute(every=3), Mixed()))
    return end, list(torch.autograd.grad(tree.dot(problem.view, end), images))


@pytest.fixture
def float64_by_default():
    """TorchOpt computes step counts in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("name, backend", PAIRS)
def test_backend_computes_the_native_rule(name, backend):
    tolerance = (
        1e-6 if backend == "higher" and isinstance(RULES[name], Adam) else 1e-9
    )  # its ε differs
    end, grads = _hypergradients(RULES[name])
    theirs, their_grads = _hypergradients(with_backend(RULES[name], backend))
    for mine, other in [*((end[k], theirs[k]) for k in end), *zip(grads, their_grads, strict=True)]:
        torch.testing.assert_close(other, mine, rtol=tolerance, atol=tolerance * 1e-3)


@pytest.mark.parametrize(
    "rule, fields",
    [
        (
            TorchOpt(lambda: __import__("torchopt").adam(0.01)),
            (),
        ),  # numbers in a closure: nothing to learn
        (with_backend(SGD(lr=0.1, momentum=0.9, dampening=0.4), "torchopt"), ("lr",)),
        (with_backend(Clipped(AdamW(lr=0.01), max_norm=0.3), "torchopt"), ("lr", "max_norm")),
        (
            with_backend(SGD(lr=0.1, momentum=0.9, weight_decay=0.1), "higher"),
            ("lr", "momentum", "weight_decay"),
        ),
        (with_backend(Adam(lr=0.01), "higher"), ("lr",)),
    ],
    ids=["torchopt closure", "torchopt sgd", "torchopt clipped adamw", "higher sgd", "higher adam"],
)
def test_adapter_is_exact_in_every_mode(rule, fields):
    check_optimizer(rule, fields=fields, vmap=False, zero_gradients=False)


@pytest.mark.parametrize(
    "rule, backend, reason",
    [
        (NAdam(), "torchopt", "torchopt has no NAdam"),
        (Lion(), "higher", "higher has no Lion"),
        (AdamW(), "higher", "higher has no AdamW"),
        (Adam(amsgrad=True), "torchopt", "amsgrad"),
        (Adamax(maximize=True), "torchopt", "maximize"),
        (SGD(momentum=0.9, dampening=0.1, nesterov=True), "torchopt", "zero dampening"),
        (SGD(weight_decay=torch.tensor(0.1)), "torchopt", "no gradient for weight_decay"),
        (Adam(beta1=torch.tensor(0.9)), "higher", "no gradient for betas"),
        (SGD(maximize=True), "higher", "ignores maximize"),
        (RMSprop(centered=True), "higher", "centred"),
        (SGD(), "jax", "native, torchopt or higher"),
    ],
)
def test_backend_refuses_what_it_cannot_do(rule, backend, reason):
    with pytest.raises(SimudyError, match=reason):
        with_backend(rule, backend)


def test_native_backend_is_the_rule_itself():
    assert with_backend(rule := Adam(), "native") is rule


# Proof of what the refusals say.


class UnguardedTorchOpt(TorchOpt):
    def init(self, params):
        return {tuple(params): self._start(list(params.values()))}


class UnguardedHigher(Higher):
    def __post_init__(self):
        pass


def _clipping_factory():
    import torchopt
    from torchopt.clip import clip_grad_norm

    return torchopt.chain(clip_grad_norm(max_norm=0.1), torchopt.sgd(lr=0.1))


def test_torchopt_clipping_is_refused_because_its_hypergradient_is_wrong():
    problem = problems()[0]
    with pytest.raises(SimudyError, match=r"Clipped\(TorchOpt"):
        problem.run(TorchOpt(_clipping_factory), {})
    with pytest.raises(AssertionError, match="finite differences"):
        check_optimizer(UnguardedTorchOpt(_clipping_factory), vmap=False, zero_gradients=False)
    theirs, mine = (
        problem.run(r, {})
        for r in (UnguardedTorchOpt(_clipping_factory), Clipped(SGD(lr=0.1), 0.1))
    )
    assert all(torch.allclose(theirs[k], mine[k], rtol=1e-12) for k in mine)  # its values are right


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: __import__("torchopt").combine.chain_flat(t)]
)
def test_torchopt_clipping_is_found_inside_of_closures(wrap):
    with pytest.raises(SimudyError, match="clip_grad_norm"):
        TorchOpt(lambda: wrap(_clipping_factory())).init({"w": torch.zeros(1)})


def test_torchopt_in_place_loses_the_hypergradient():
    import torchopt

    def end(x: Tensor, inplace: bool) -> Tensor:
        theta, transform = torch.ones(1, dtype=x.dtype), torchopt.sgd(lr=0.1)
        state = transform.init(theta)
        for _ in range(2):
            grad = torch.func.grad(lambda w: (w - x).square().sum())(theta)
            move, state = transform.update(grad, state, params=theta, inplace=inplace)
            theta = torchopt.apply_updates(theta, move, inplace=inplace)
        return theta.sum()

    x = torch.tensor(0.5, dtype=torch.float64)
    expected = directional(
        lambda at: end(at[0], False), [x], along=[torch.ones_like(x)], step=1e-3
    )  # 1 − 0.8²
    assert expected == pytest.approx(0.36)
    assert torch.func.grad(end)(x, False).item() == pytest.approx(expected)
    assert torch.func.grad(end)(x, True).item() == 0.0


def test_torchopt_needs_a_new_transformation_each_time():
    import torchopt

    one = torchopt.sgd(lr=0.1, momentum=0.9)
    with pytest.raises(SimudyError, match="factory"):
        TorchOpt(lambda: one).init({"w": torch.zeros(1)})


def test_torchopt_is_replayed_exactly_despite_its_hidden_flag():
    """Dampening skips the first step, which TorchOpt remembers in a closure: a replay must not see
    it as used.
    """
    rule = with_backend(SGD(lr=0.1, momentum=0.9, dampening=0.5), "torchopt")
    problem = problems()[0]
    state = rule.init(problem.model.params)
    grads = problem.model.params
    first, later = rule.update(grads, state, grads)
    rule.update(grads, later, first)
    again, _ = rule.update(grads, copy.deepcopy(state), grads)
    assert all(torch.equal(first[k], again[k]) for k in first)


def test_tensor_captured_by_a_factory_is_not_lost_silently():
    import torchopt

    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    problem = problems()[0]
    learned: Any = lr  # torchopt declares a float
    with pytest.raises(SimudyError, match="gradient would be lost"):
        problem.run(TorchOpt(lambda: torchopt.sgd(lr=learned)), {}, (Recompute(), Mixed()))


def test_higher_ignores_maximize():
    problem = problems()[0]
    up, down = (
        problem.run(UnguardedHigher(torch.optim.SGD, {"lr": 0.1, "maximize": flag}), {})
        for flag in (True, False)
    )
    assert all(torch.equal(up[k], down[k]) for k in up)


def test_higher_centred_rmsprop_is_nan_where_a_gradient_is_zero():
    centred = UnguardedHigher(torch.optim.RMSprop, {"lr": 0.01, "centered": True})
    with pytest.raises(AssertionError, match="not finite"):
        check_optimizer(centred, fields=("lr",), vmap=False)
    check_optimizer(RMSprop(centered=True), fields=("lr",), vmap=False)


def test_higher_adam_has_no_gradient_for_its_second_beta():
    beta2 = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    problem = problems()[0]

    def outcome(value: list[Tensor]) -> Tensor:
        return problem.outcome(
            UnguardedHigher(torch.optim.Adam, {"lr": 0.01, "betas": (0.9, value[0])}), {}
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # math.sqrt of a tensor
        (found,) = torch.autograd.grad(outcome([beta2]), beta2)
        expected = directional(outcome, [beta2], along=[torch.ones_like(beta2)], step=1e-4)
    assert found.item() != pytest.approx(expected, rel=0.1)


def test_higher_agrees_with_its_own_loop():
    import higher

    problem = problems()[0]
    module, lr = (
        copy.deepcopy(problem.module),
        torch.tensor(0.1, dtype=torch.float64, requires_grad=True),
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    with higher.innerloop_ctx(module, optimizer, override={"lr": [lr]}) as (net, twin):
        for images, labels, weights in problem.batches:
            twin.step(
                (
                    nn.functional.cross_entropy(net(images), labels, reduction="none") * weights
                ).mean()
            )
        pairs = zip(problem.view.values(), net.parameters(), strict=True)
        theirs = sum(((v * p).sum() for v, p in pairs), torch.zeros(()))
    mine = problem.outcome(Higher(torch.optim.SGD, {"lr": lr, "momentum": 0.9}), {})
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
    (a,), (b,) = torch.autograd.grad(mine, lr), torch.autograd.grad(theirs, lr)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


# torch.optim

OPTIMIZERS: dict[str, tuple[Callable, object]] = {
    "sgd": (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        SGD(0.1, 0.9, nesterov=True),
    ),
    "adam": (
        lambda p: torch.optim.Adam(p, betas=(0.8, 0.9), foreach=True),
        Adam(beta1=0.8, beta2=0.9),
    ),
    "adam decoupled": (
        lambda p: torch.optim.Adam(p, weight_decay=0.1, decoupled_weight_decay=True),
        AdamW(weight_decay=0.1),
    ),
    "adamw": (lambda p: torch.optim.AdamW(p, fused=True), AdamW()),
    "nadam": (lambda p: torch.optim.NAdam(p, momentum_decay=0.1), NAdam(momentum_decay=0.1)),
    "radam": (
        lambda p: torch.optim.RAdam(p, decoupled_weight_decay=True),
        RAdam(decoupled_weight_decay=True),
    ),
    "adamax": (torch.optim.Adamax, Adamax()),
    "rmsprop": (
        lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5),
        RMSprop(momentum=0.5, centered=True),
    ),
    "adagrad": (lambda p: torch.optim.Adagrad(p, lr_decay=0.1), Adagrad(lr_decay=0.1)),
    "adadelta": (torch.optim.Adadelta, Adadelta()),
    "asgd": (lambda p: torch.optim.ASGD(p, t0=5, foreach=True), ASGD(t0=5)),
    "rprop": (lambda p: torch.optim.Rprop(p, etas=(0.4, 1.3)), Rprop(etas=(0.4, 1.3))),
    "adafactor": (lambda p: torch.optim.Adafactor(p, d=2.0), Adafactor(d=2.0)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rule_of_a_live_optimizer(name):
    make, expected = OPTIMIZERS[name]
    module = nn.Linear(2, 2)
    rule = from_torch(make(module.parameters()), module)
    assert type(rule) is type(expected) and rule == expected


def test_every_default_of_a_live_optimizer_is_ours():
    kinds: set[Any] = {*_STATES} - {Muon}
    for kind in kinds:
        module = nn.Linear(2, 2)
        theirs = getattr(torch.optim, kind.__name__)(module.parameters(), lr=0.5)
        assert from_torch(theirs, module) == kind(lr=0.5)


def test_muon_of_a_live_optimizer():
    module = nn.Linear(2, 2, bias=False)
    rule = from_torch(torch.optim.Muon(module.parameters(), adjust_lr_fn="match_rms_adamw"), module)
    assert (
        type(rule).__name__ == "Muon"
        and rule.adjust_lr_fn == "match_rms_adamw"
        and rule.weight_decay == 0.1
    )


def test_live_parameter_groups_train_as_in_torch():
    problem = problems()[0]
    module = copy.deepcopy(problem.module)
    groups = [
        {"params": [module[0].weight], "lr": 0.3},
        {"params": module[2].parameters(), "weight_decay": 0.1},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)  # 0.bias is in no group: frozen
    end = problem.run(from_torch(optimizer, module), {})
    for images, labels, weights in problem.batches:
        optimizer.zero_grad()
        (
            nn.functional.cross_entropy(module(images), labels, reduction="none") * weights
        ).mean().backward()
        optimizer.step()
    for name, theirs in module.named_parameters():
        torch.testing.assert_close(end[name], theirs.detach(), rtol=0, atol=1e-12)


def test_live_optimizers_we_lack_are_refused():
    module = nn.Linear(2, 2)
    for kind, remedy in (("LBFGS", "SGD or Adam"), ("SparseAdam", "sparse=False")):
        optimizer = getattr(torch.optim, kind)(module.parameters())
        with pytest.raises(SimudyError, match=f"no rule for {kind}: .*{remedy}"):
            from_torch(optimizer, module)
    own = type("Own", (torch.optim.SGD,), {})(module.parameters())
    with pytest.raises(SimudyError, match="no rule for Own: write one deriving from PerTensor"):
        from_torch(own, module)
    with pytest.raises(SimudyError, match=re.escape("shape (2, 2)")):
        from_torch(torch.optim.SGD(module.parameters()), nn.Linear(3, 3))


def test_torchopt_learns_its_rate_like_the_native_rule():
    problem = problems()[0]
    found = []
    for make in (
        lambda lr: SGD(lr=lr, momentum=0.9),
        lambda lr: with_backend(SGD(lr=lr, momentum=0.9), "torchopt"),
    ):
        lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        end = simulate(
            problem.model.loss,
            problem.model.params,
            problem.batches,
            make(lr),
            adjoint=Recompute(every=2),
        )
        found += torch.autograd.grad(tree.dot(problem.view, end), lr)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)
