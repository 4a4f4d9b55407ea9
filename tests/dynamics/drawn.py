"""What the property test draws: a network, a rule, batches and a way to run them, each as a few
choices that say what is in it, and a seed for all its numbers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from simudy.dynamics import optim as ours
from simudy.dynamics.adjoint import Direct, Recompute
from simudy.dynamics.gradient import Factored, Gradient, Mixed, Reverse, Traced

WIDTH, CLASSES = 4, 3
SMOOTH = 0.1  # ε of norms: over four numbers they are too steep for finite differences without


@dataclass(frozen=True)
class Case:
    """One draw."""

    kind: str  # what the first layers read: rows, images or tokens
    body: tuple[str, ...]
    activation: str
    heads: int
    frozen: tuple[int, ...]
    rule: str
    on: frozenset[str]  # fields of the rule, see FIELDS
    learned: bool
    wrapped: tuple[str, ...]
    live: int  # steps that torch took before; then the rule is ``from_torch``'s
    scheduled: bool
    penalty: bool
    adjoint: Direct | Recompute
    gradient: Gradient
    sizes: tuple[int, ...]
    epochs: int
    labels: str
    weighted: bool
    vmap: str
    order: int
    seed: int


# Networks


class Tied(nn.Module):
    """One matrix, there and back."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(WIDTH, 5), nn.Linear(WIDTH, 5, bias=False)
        self.back.weight = self.there.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.there(x).tanh(), self.back.weight.T)


class Shared(nn.Module):
    """One layer, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


class LoRA(nn.Module):
    """A frozen matrix, and a learned one of low rank beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH)
        self.base.requires_grad_(False)
        self.down = nn.Parameter(0.5 * torch.randn(2, WIDTH))
        self.up = nn.Parameter(0.5 * torch.randn(WIDTH, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + self.up @ self.down, self.base.bias)


class Scaled(nn.Module):
    """A matrix that is used at half its size, negated, and penalised by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, 0.5 * self.weight), weight=-self.weight)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


class Encoder(nn.TransformerEncoderLayer):
    def __init__(self) -> None:
        super().__init__(
            WIDTH, 2, 6, 0.0, F.gelu, layer_norm_eps=SMOOTH, batch_first=True, norm_first=True
        )


BODIES = {
    "rows": {
        "linear": lambda: nn.Linear(WIDTH, WIDTH),
        "tied": Tied,
        "shared": Shared,
        "lora": LoRA,
        "scaled": Scaled,
        "weight norm": lambda: weight_norm(nn.Linear(WIDTH, WIDTH)),
        "layer norm": lambda: nn.LayerNorm(WIDTH, SMOOTH),
        "batch norm": lambda: nn.BatchNorm1d(WIDTH, SMOOTH),
        "batch norm eval": lambda: nn.BatchNorm1d(WIDTH, SMOOTH).eval(),
        "group norm": lambda: nn.GroupNorm(2, WIDTH, SMOOTH),
        "rms norm": lambda: nn.RMSNorm(WIDTH, SMOOTH),
    },
    "images": {
        "conv": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        "depthwise": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=2, bias=False),
        "batch norm": lambda: nn.BatchNorm2d(WIDTH, SMOOTH),
        "batch norm eval": lambda: nn.BatchNorm2d(WIDTH, SMOOTH).eval(),
        "instance norm": lambda: nn.InstanceNorm2d(WIDTH, SMOOTH, affine=True),
        "group norm": lambda: nn.GroupNorm(2, WIDTH, SMOOTH),
    },
    "tokens": {
        "attention": Attention,
        "encoder": Encoder,
        "linear": lambda: nn.Linear(WIDTH, WIDTH),
        "layer norm": lambda: nn.LayerNorm(WIDTH, SMOOTH),
    },
}
FIRST = {
    "rows": lambda: nn.Linear(WIDTH, WIDTH),
    "images": lambda: nn.Conv2d(2, WIDTH, 3, padding=1),
    "tokens": lambda: nn.Linear(WIDTH, WIDTH),
}
ACTIVATIONS = {"tanh": torch.tanh, "gelu": F.gelu, "silu": F.silu, "relu": F.relu}


class Network(nn.Module):
    """The body, then a head; with two of them the rows of the batch choose. One parameter is for
    nobody.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.kind, self.activation = case.kind, ACTIVATIONS[case.activation]
        body = [FIRST[case.kind](), *(BODIES[case.kind][name]() for name in case.body)]
        self.body = nn.ModuleList(body)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(case.heads))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = self.activation(layer(x))
        rows = {"rows": x, "images": x.flatten(2).mean(-1) if x.ndim > 3 else x}
        rows = rows.get(self.kind, x.mean(1) if x.ndim > 2 else x)
        return self.heads[len(x) % len(self.heads)](rows)


def network(case: Case) -> Network:
    """The network of a draw, in the modes its layers were made in."""
    torch.manual_seed(case.seed)
    module = Network(case)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 1.5)
    parameters = [*module.body.parameters(), *module.heads.parameters()]
    for p in parameters:  # zero is where √(g²) has its kink, if weight decay is all that is felt
        if not p.any():
            nn.init.normal_(p, std=0.3)
    for i in case.frozen:
        parameters[i % len(parameters)].requires_grad_(False)
    return module


# Rules: which fields may be on, and between which numbers; True is a flag. ε is always on: some
# gradients are zero but for rounding (a bias before a norm), and a rule that divides by less than
# them would make steps of it.

DECAY = {"weight_decay": (0.01, 0.2)}
MOMENTUM = {"momentum": (0.1, 0.9)}
EPS = {"eps": (1e-3, 1e-1)}
BETAS = {"beta1": (0.5, 0.95), "beta2": (0.8, 0.99)}
FIELDS: dict[str, dict[str, Any]] = {
    "SGD": {**MOMENTUM, **DECAY, "dampening": (0.1, 0.5), "nesterov": True, "maximize": True},
    "Adam": {**BETAS, **EPS, **DECAY, "amsgrad": True},
    "AdamW": {**BETAS, **EPS, **DECAY, "maximize": True},
    "NAdam": {
        **BETAS,
        **EPS,
        **DECAY,
        "momentum_decay": (0.01, 0.1),
        "decoupled_weight_decay": True,
    },
    "RAdam": {
        **BETAS,
        "beta2": (0.3, 0.99),  # below 0.6 it is never adaptive
        **EPS,
        **DECAY,
        "decoupled_weight_decay": True,
        "maximize": True,
    },
    "Adamax": {**BETAS, **EPS, **DECAY, "maximize": True},
    "RMSprop": {**EPS, **MOMENTUM, **DECAY, "alpha": (0.5, 0.99), "centered": True},
    "Adagrad": {**EPS, **DECAY, "lr_decay": (0.01, 0.2), "initial_accumulator_value": (0.01, 0.1)},
    "Adadelta": {"rho": (0.5, 0.95), **EPS, **DECAY},
    "ASGD": {"lambd": (0.01, 0.2), "alpha": (0.3, 1.0), **DECAY, "maximize": True},
    "Lion": {**BETAS, **DECAY},
    "Muon": {"momentum": (0.5, 0.95), **DECAY, "nesterov": True},
}
RATES = {"SGD": (0.05, 0.4), "Adadelta": (0.5, 2.0)}


def options(case: Case) -> dict[str, Any]:
    """The fields of the rule, as numbers and flags."""
    rng = random.Random(case.seed)
    low, high = RATES.get(case.rule, (0.01, 0.1))
    found: dict[str, Any] = {"lr": rng.uniform(low, high)}
    for name, bounds in FIELDS[case.rule].items():
        number = True if bounds is True else rng.uniform(*bounds)
        if name in case.on or name == "eps":
            found[name] = number
    if case.rule == "SGD" and found.get("nesterov"):  # torch's own condition
        found["momentum"] = found.get("momentum", 0.5)
        found.pop("dampening", None)
    return found


def native(case: Case, given: dict[str, Any]) -> Any:
    """The rule with fields ``given``; a slower one for biases where there are groups."""
    more = {"others": ours.SGD(0.1, weight_decay=0.1)} if case.rule == "Muon" else {}
    fast, slow = (
        getattr(ours, case.rule)(**{**given, **more, "lr": factor * given["lr"]})
        for factor in (1.0, 0.5)
    )
    groups: dict[Any, Any] = {"*bias": slow, "unused*": None, "*": fast}
    return ours.Groups(groups) if "groups" in case.wrapped else fast


def wrap(case: Case, rule: Any) -> Any:
    """``rule`` inside of what it is wrapped in."""
    if "adaptively" in case.wrapped:
        rule = ours.ClippedAdaptively(rule, ratio=RATIO)
    if "clipped" in case.wrapped:
        rule = ours.Clipped(rule, max_norm=CLIP)
    if "by value" in case.wrapped:
        rule = ours.ClippedByValue(rule, max_value=CLIP_VALUE)
    if "accumulated" in case.wrapped:
        rule = ours.Accumulated(rule, every=2)
    if "averaged" in case.wrapped:
        rule = ours.Averaged(rule, decay=EMA, start=1)
    return rule


CLIP, CLIP_VALUE, RATIO, EMA, PENALTY = 0.3, 0.05, 0.3, 0.7, 0.05
WRAPPERS = ("groups", "adaptively", "clipped", "by value", "accumulated", "averaged")


def rates(case: Case) -> list[float]:
    """The factor on the learning rate at each step."""
    steps = len(case.sizes) * case.epochs
    return [1 / (1 + 0.3 * t) if case.scheduled else 1.0 for t in range(steps)]


# Batches


def batches(case: Case) -> list[list[Tensor]]:
    """The batches of one epoch: images, labels, and weights if there are any."""
    generator = torch.Generator().manual_seed(case.seed)
    drawn = []
    for t, n in enumerate(case.sizes):
        side = 3 + t % 2  # changing shapes
        shape = {"rows": (WIDTH,), "images": (2, side, side), "tokens": (side, WIDTH)}[case.kind]
        batch = [torch.randn(n, *shape, generator=generator)]
        if case.labels == "soft":
            batch.append(torch.rand(n, CLASSES, generator=generator))
        else:
            batch.append(torch.randint(CLASSES, (n,), generator=generator))
        if case.weighted:
            batch.append(0.5 + torch.rand(n, generator=generator))
        drawn.append(batch)
    return drawn


# Draws


def gradients(rule: str, wrapped: Sequence[str], live: int) -> list[Gradient]:
    modes: list[Gradient] = [Reverse(), Mixed()] * 4 + [Traced()]  # which records for a second
    if rule in ("SGD", "ASGD") and not live and not {"by value", "adaptively"} & set(wrapped):
        modes += [Factored(layers="all"), Factored(inner=Mixed(), layers="all"), Factored()] * 7
    return modes


@st.composite
def cases(draw: Any) -> Case:
    """Any case."""
    one_of = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    kind = one_of("rows", "rows", "images", "tokens")
    rule = one_of("SGD", "SGD", "SGD", *FIELDS)  # the one whose weights may be factored
    wrapped = tuple(w for w in WRAPPERS if one_of(False, False, False, True))
    live = 0 if rule in ("Lion", "Muon") else one_of(0, 0, 0, 1, 3)
    return Case(
        kind=kind,
        body=tuple(draw(st.lists(st.sampled_from(list(BODIES[kind])), min_size=1, max_size=2))),
        activation=one_of(*ACTIVATIONS),
        heads=one_of(1, 2),
        frozen=tuple(draw(st.lists(st.integers(0, 20), max_size=2))),
        rule=rule,
        on=draw(st.frozensets(st.sampled_from(list(FIELDS[rule])))),
        learned=draw(st.booleans()) and not live,
        wrapped=wrapped,
        live=live,
        scheduled=one_of(False, False, True),
        penalty=one_of(False, False, False, True),
        adjoint=one_of(Direct(), Recompute(every=1), Recompute(every=2)),
        gradient=one_of(*gradients(rule, wrapped, live)),
        sizes=tuple(draw(st.lists(st.integers(2, 5), min_size=1, max_size=3))),
        epochs=one_of(1, 2),
        labels=one_of("hard", "soft"),
        weighted=draw(st.booleans()),
        vmap=one_of("no", "no", "inside", "outside"),
        order=one_of(1, 2),
        seed=draw(st.integers(0, 2**16)),
    )
