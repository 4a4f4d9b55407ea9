"""Which layers each gradient mode and adjoint differentiates exactly: the table of
docs/results/layers.md, entry by entry.

``python tests/dynamics/test_layers.py`` prints the tables for the page.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from simudy import (
    SGD,
    Direct,
    Factored,
    Mixed,
    Recompute,
    Reverse,
    SimudyError,
    StatelessModel,
    simulate,
)
from simudy.dynamics import tree
from simudy.testing import directional

MODES = {
    f"{gradient} {adjoint}": (a, g)
    for gradient, g in {
        "Reverse": Reverse(),
        "Mixed": Mixed(),
        "Factored": Factored(layers="all"),
    }.items()
    for adjoint, a in {"Direct": Direct(), "Recompute": Recompute(2)}.items()
}
PAGE = Path(__file__).parents[2] / "docs" / "results" / "layers.md"
PIXELS, SERIES, VECTOR, WORDS = (2, 4, 4), (3, 4), (4,), "words"


class First(nn.Module):
    """A recurrent layer's outputs, without its last state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class TiedLinear(nn.Module):
    """The same weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class TiedWords(nn.Module):
    """One weight as embedding and as output layer, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x):
        return self.out(torch.tanh(self.words(x)))


class Symmetric(nn.Module):
    """A parametrization of one's own."""

    def forward(self, weight):
        return weight + weight.mT


def symmetric() -> nn.Module:
    return parametrize.register_parametrization(nn.Linear(4, 4), "weight", Symmetric())


def weight_norm(layer: nn.Module, *, dim: Any) -> nn.Module:  # torch declares no None
    return parametrizations.weight_norm(layer, dim=dim)


def orthogonal(kind: str, out: int = 4) -> nn.Module:
    return parametrizations.orthogonal(nn.Linear(4, out), orthogonal_map=kind)


class Calling(nn.Module):
    """A forward of one's own that calls a function of torch."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class NormOfOnesOwn(nn.Module):
    """A scale and a shift, handed to a norm of ``torch.nn.functional``."""

    def __init__(self, norm: Callable[..., Tensor], width: int) -> None:
        super().__init__()
        self.norm = norm
        self.scale, self.shift = (
            nn.Parameter(torch.rand(width) + 0.5),
            nn.Parameter(torch.randn(width)),
        )

    def forward(self, x):
        return self.norm(x, self.scale, self.shift)


def encoder(**options) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, **options)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | str]] = {
    "Linear": (lambda: nn.Linear(4, 3), VECTOR),
    "Conv1d": (lambda: nn.Conv1d(3, 4, 2), SERIES),
    "Conv2d, strided, padded": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), PIXELS),
    "Conv2d, grouped": (lambda: nn.Conv2d(2, 4, 3, groups=2), PIXELS),
    "Conv2d, dilated, circular padding": (
        lambda: nn.Conv2d(2, 3, 2, dilation=2, padding=1, padding_mode="circular"),
        PIXELS,
    ),
    "Conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), PIXELS),
    "ConvTranspose2d, grouped": (lambda: nn.ConvTranspose2d(2, 4, 2, groups=2), PIXELS),
    "BatchNorm1d, train mode": (lambda: nn.BatchNorm1d(4), VECTOR),
    "BatchNorm2d, train mode": (lambda: nn.BatchNorm2d(2), PIXELS),
    "BatchNorm1d, train mode, without statistics, not affine": (
        lambda: nn.BatchNorm1d(4, affine=False, track_running_stats=False),
        VECTOR,
    ),
    "BatchNorm3d, train mode": (lambda: nn.BatchNorm3d(1), (1, 2, 3, 3)),
    "BatchNorm2d, eval mode": (lambda: nn.BatchNorm2d(2).eval(), PIXELS),
    "BatchNorm1d, eval mode, without statistics": (
        lambda: nn.BatchNorm1d(4, track_running_stats=False).eval(),
        VECTOR,
    ),
    "GroupNorm": (lambda: nn.GroupNorm(1, 2), PIXELS),
    "GroupNorm, two groups": (lambda: nn.GroupNorm(2, 4), (4, 3)),
    "LayerNorm": (lambda: nn.LayerNorm(4), SERIES),
    "LayerNorm, over two dimensions": (lambda: nn.LayerNorm([3, 4]), SERIES),
    "RMSNorm": (lambda: nn.RMSNorm(4), SERIES),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(2, affine=True), PIXELS),
    "InstanceNorm2d, tracking, train mode": (
        lambda: nn.InstanceNorm2d(2, track_running_stats=True),
        PIXELS,
    ),
    "InstanceNorm2d, tracking, eval mode": (
        lambda: nn.InstanceNorm2d(2, track_running_stats=True).eval(),
        PIXELS,
    ),
    "F.layer_norm in a forward of one's own": (
        lambda: NormOfOnesOwn(lambda x, w, b: F.layer_norm(x, (4,), w, b), 4),
        SERIES,
    ),
    "torch.layer_norm in a forward of one's own": (
        lambda: Calling(lambda x: torch.layer_norm(x, (4,))),
        SERIES,
    ),
    "F.batch_norm in a forward of one's own": (
        lambda: NormOfOnesOwn(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), 2),
        PIXELS,
    ),
    "F.instance_norm in a forward of one's own": (
        lambda: NormOfOnesOwn(lambda x, w, b: F.instance_norm(x, weight=w, bias=b), 2),
        PIXELS,
    ),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), PIXELS),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), PIXELS),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(3), PIXELS),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(3), PIXELS),
    "Upsample, bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), PIXELS),
    "ReLU": (nn.ReLU, VECTOR),
    "GELU": (nn.GELU, VECTOR),
    "PReLU": (nn.PReLU, VECTOR),
    "SiLU": (nn.SiLU, VECTOR),
    "Mish": (nn.Mish, VECTOR),
    "ELU": (nn.ELU, VECTOR),
    "GLU": (nn.GLU, VECTOR),
    "Hardsigmoid": (nn.Hardsigmoid, VECTOR),
    "Softmax": (lambda: nn.Softmax(-1), VECTOR),
    "F.normalize": (lambda: Calling(lambda x: F.normalize(x, dim=-1)), VECTOR),
    "torch.std": (lambda: Calling(lambda x: x / x.std(-1, keepdim=True)), VECTOR),
    "Dropout, eval mode": (lambda: nn.Dropout(0.5).eval(), VECTOR),
    "Embedding": (lambda: nn.Embedding(5, 4), WORDS),
    "Embedding, sparse": (lambda: nn.Embedding(5, 4, sparse=True), WORDS),
    "RNN": (lambda: First(nn.RNN(4, 3, batch_first=True)), SERIES),
    "LSTM": (lambda: First(nn.LSTM(4, 3, batch_first=True)), SERIES),
    "LSTM, two layers, bidirectional": (
        lambda: First(nn.LSTM(4, 2, num_layers=2, bidirectional=True, batch_first=True)),
        SERIES,
    ),
    "GRU": (lambda: First(nn.GRU(4, 3, batch_first=True)), SERIES),
    "GRU, two layers, bidirectional": (
        lambda: First(nn.GRU(4, 2, num_layers=2, bidirectional=True, batch_first=True)),
        SERIES,
    ),
    "LSTM, projected": (lambda: First(nn.LSTM(4, 3, proj_size=2, batch_first=True)), SERIES),
    "GRUCell": (lambda: nn.GRUCell(4, 3), VECTOR),
    "LSTMCell": (lambda: First(nn.LSTMCell(4, 3)), VECTOR),
    "RNNCell": (lambda: nn.RNNCell(4, 3), VECTOR),
    "F.scaled_dot_product_attention, causal": (
        lambda: Calling(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
        SERIES,
    ),
    "MultiheadAttention": (SelfAttention, SERIES),
    "TransformerEncoderLayer, train mode, no dropout": (lambda: encoder(dropout=0.0), SERIES),
    "TransformerEncoderLayer, eval mode": (lambda: encoder().eval(), SERIES),
    "TransformerEncoderLayer, norm first, GELU": (
        lambda: encoder(dropout=0.0, norm_first=True, activation="gelu"),
        SERIES,
    ),
    "Tied weights: Linear with Linear": (TiedLinear, VECTOR),
    "Tied weights: Embedding with Linear": (TiedWords, WORDS),
    "parametrize: a class of one's own": (symmetric, VECTOR),
    "parametrizations.weight_norm of Linear": (
        lambda: parametrizations.weight_norm(nn.Linear(4, 3)),
        VECTOR,
    ),
    "parametrizations.weight_norm of Conv2d, dim=None": (
        lambda: weight_norm(nn.Conv2d(2, 3, 3), dim=None),
        PIXELS,
    ),
    "parametrizations.orthogonal, matrix_exp": (lambda: orthogonal("matrix_exp"), VECTOR),
    "parametrizations.orthogonal, cayley": (lambda: orthogonal("cayley"), VECTOR),
    "parametrizations.orthogonal, householder": (lambda: orthogonal("householder", out=3), VECTOR),
    "parametrizations.spectral_norm, eval mode": (
        lambda: parametrizations.spectral_norm(nn.Linear(4, 3)).eval(),
        VECTOR,
    ),
}


def legacy(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return wrap(nn.Linear(4, 3))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "Dropout above 0, train mode": (lambda: nn.Dropout(0.1), "random", "eval mode, or rate 0"),
    "RReLU, train mode": (nn.RReLU, "random", "eval mode"),
    "FractionalMaxPool2d": (
        lambda: nn.FractionalMaxPool2d(2, output_size=2),
        "random",
        "MaxPool2d or AdaptiveMaxPool2d",
    ),
    "EmbeddingBag": (
        lambda: nn.EmbeddingBag(5, 4),
        "torch has no second derivative",
        "Embedding and a sum or mean over words",
    ),
    "Embedding, max_norm": (
        lambda: nn.Embedding(5, 4, max_norm=1.0),
        "changes its weight in place, outside of the graph",
        "max_norm=None",
    ),
    "Embedding, padding_idx": (
        lambda: nn.Embedding(5, 4, padding_idx=0),
        "a row without gradient, which torch's second derivative forgets",
        "padding_idx=None and a mask on the output",
    ),
    "Embedding, scale_grad_by_freq": (
        lambda: nn.Embedding(5, 4, scale_grad_by_freq=True),
        "torch's second derivative forgets the scale",
        "scale_grad_by_freq=False",
    ),
    "parametrizations.spectral_norm, train mode": (
        lambda: parametrizations.spectral_norm(nn.Linear(4, 3)),
        "power iterations outside of the graph",
        "eval mode",
    ),
    "torch.nn.utils.weight_norm (deprecated)": (
        lambda: legacy(torch.nn.utils.weight_norm),
        "torch's second derivative is wrong",
        "torch.nn.utils.parametrizations",
    ),
    "torch.nn.utils.spectral_norm (deprecated)": (
        lambda: legacy(torch.nn.utils.spectral_norm),
        "power iterations outside of the graph",
        "torch.nn.utils.parametrizations",
    ),
}


Inputs = dict[str, list[Tensor]]  # images, soft labels, θ0


class Case(NamedTuple):
    """A small network around the layer, one batch, and directions to differentiate along."""

    model: StatelessModel
    inputs: Inputs
    words: Tensor | None  # what is read where images are no numbers
    along: Inputs
    across: Inputs  # for the second derivative

    def outcome(self, inputs: Inputs, mode: str = "Reverse Direct") -> Tensor:
        """One number that every final parameter has a share in, after three steps."""
        (images,), (labels,) = inputs["images"] or [self.words], inputs["labels"]
        adjoint, gradient = MODES[mode]
        theta0 = dict(zip(self.model.params, inputs["parameters"], strict=True))
        batches, rule = [(images, labels)] * 3, SGD(lr=0.3, momentum=0.5)
        end = simulate(self.model.loss, theta0, batches, rule, adjoint=adjoint, gradient=gradient)
        return tree.dot(
            end, tree.map(lambda p: torch.arange(p.numel()).to(p).cos().view(p.shape), end)
        )


def case(name: str, device: str = "cpu") -> Case:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, words = make(), torch.randint(0, 5, (3, 4)) if shape == WORDS else None
    sizes = [int(s) for s in shape] if words is None else []
    images = torch.randn([3, *sizes], dtype=torch.float64) if words is None else None
    # A layer before and one after, so that the derivative passes through the weights and through
    # the inputs.
    before = (
        nn.Identity()
        if words is not None
        else nn.Sequential(nn.Linear(sizes[-1], sizes[-1]), nn.Tanh())
    )
    body = nn.Sequential(before, layer, nn.Flatten()).double()
    for key, buffer in body.named_buffers():
        if "running" in key:
            buffer.uniform_(0.5, 1.5)
    width = body(words if images is None else images).shape[1]
    model = StatelessModel(nn.Sequential(body, nn.Linear(width, 3).double())).to(device)
    inputs = {
        "images": [] if images is None else [images],
        "labels": [torch.randn(3, 3, dtype=torch.float64).softmax(1)],
        "parameters": list(model.params.values()),
    }
    inputs = {kind: [leaf.to(device) for leaf in leaves] for kind, leaves in inputs.items()}
    along, across = (
        {kind: [torch.randn_like(leaf) for leaf in leaves] for kind, leaves in inputs.items()}
        for _ in range(2)
    )
    if "householder" in name:  # rounds the signs on the diagonal of its matrix: a step there jumps
        for p, *ds in zip(*(d["parameters"] for d in (inputs, along, across)), strict=True):
            for d in ds:
                d.mul_(p.abs() != 1)
    return Case(model, inputs, None if words is None else words.to(device), along, across)


def slopes(case: Case, mode: str) -> dict[str, float]:
    """Derivatives along the directions, by the mode."""
    inputs = {
        kind: [leaf.clone().requires_grad_() for leaf in leaves]
        for kind, leaves in case.inputs.items()
    }
    flat = [leaf for leaves in inputs.values() for leaf in leaves]
    grads = iter(torch.autograd.grad(case.outcome(inputs, mode), flat))
    return {kind: sum(float((next(grads) * d).sum()) for d in case.along[kind]) for kind in inputs}


def expected(case: Case) -> dict[str, float]:
    """The same by finite differences of a plain forward run."""

    def of(kind: str) -> Callable[[list[Tensor]], Tensor]:
        return lambda leaves: case.outcome({**case.inputs, kind: leaves})

    return {
        kind: directional(of(kind), leaves, case.along[kind], step=1e-5) if leaves else 0.0
        for kind, leaves in case.inputs.items()
    }


def moved(inputs: Inputs, by: Inputs, step: float) -> Inputs:
    return {
        kind: [x + step * d for x, d in zip(leaves, by[kind], strict=True)]
        for kind, leaves in inputs.items()
    }


def curvature(case: Case, mode: str, batched: bool = False) -> float:
    """The second derivative of the outcome along both directions, by torch.autograd twice; batched,
    that of the first of two outcomes under one vmap.
    """
    inputs = {kind: [x.clone() for x in leaves] for kind, leaves in case.inputs.items()}
    if batched:
        other = moved(inputs, case.across, 0.1)
        inputs = {
            k: [torch.stack(p) for p in zip(inputs[k], other[k], strict=True)] for k in inputs
        }
    flat = [x.requires_grad_() for leaves in inputs.values() for x in leaves]

    def outcome(at: Inputs) -> Tensor:
        return case.outcome(at, mode)

    def along(grads: Sequence[Tensor], directions: Inputs) -> Tensor:
        flat = [d for leaves in directions.values() for d in leaves]
        return sum(
            (((g[0] if batched else g) * d).sum() for g, d in zip(grads, flat, strict=True)),
            torch.zeros(()),
        )

    value = torch.func.vmap(outcome)(inputs).sum() if batched else outcome(inputs)
    slope = along(torch.autograd.grad(value, flat, create_graph=True), case.along)
    return float(along(torch.autograd.grad(slope, flat), case.across))


def expected_curvature(case: Case) -> float:
    """The same by finite differences of the slope."""

    def slope(step: float) -> float:
        at = moved(case.inputs, case.across, step)
        return sum(slopes(case._replace(inputs=at), "Reverse Direct").values())

    h = 1e-4
    return (8 * (slope(h) - slope(-h)) - (slope(2 * h) - slope(-2 * h))) / (12 * h)


def batched_slopes(case: Case, mode: str) -> dict[str, float]:
    """The slopes once more, as the first of two outcomes under one vmap."""
    other = moved(case.inputs, case.across, 0.1)
    both = {
        kind: [torch.stack(pair).requires_grad_() for pair in zip(leaves, other[kind], strict=True)]
        for kind, leaves in case.inputs.items()
    }
    outcomes = torch.func.vmap(lambda at: case.outcome(at, mode))(both)
    flat = [leaf for leaves in both.values() for leaf in leaves]
    grads = iter(torch.autograd.grad(outcomes.sum(), flat))
    return {k: sum(float((next(grads)[0] * d).sum()) for d in case.along[k]) for k in both}


def works_under_vmap(name: str) -> dict[str, bool]:
    """For each mode, whether autograd over vmap gives finite differences, to six digits."""
    about = case(name)
    truth = pytest.approx(expected(about), rel=1e-6, abs=1e-9)
    return {mode: batched_slopes(about, mode) == truth for mode in MODES}


def works_twice(name: str) -> dict[str, bool]:
    """For each mode, whether the second derivative of the outcome is that of finite differences,
    to six digits, alone and under vmap.
    """
    about = case(name)
    truth = pytest.approx(expected_curvature(about), rel=1e-6, abs=1e-8)
    return {m: curvature(about, m) == truth == curvature(about, m, batched=True) for m in MODES}


def works(name: str, device: str = "cpu") -> dict[str, bool]:
    """For each mode, whether its derivatives are those of finite differences, to six digits."""
    about = case(name, device)
    truth = expected(about)
    assert all(abs(value) > 1e-6 for kind, value in truth.items() if about.inputs[kind]), truth
    return {mode: slopes(about, mode) == pytest.approx(truth, rel=1e-6, abs=1e-9) for mode in MODES}


def factored(name: str) -> list[str]:
    """The parameters of the layer itself that ``Factored(layers="all")`` keeps in factors."""
    about = case(name)
    images, labels = about.inputs["images"] or [about.words], about.inputs["labels"]
    chosen = Factored(layers="all").chosen(
        about.model.loss, about.model.params, [(*images, *labels)]
    )
    return sorted(key.removeprefix("0.1.") for key in chosen if key.startswith("0.1."))


@pytest.mark.parametrize("name", LAYERS)
def test_every_mode_is_exact(name):
    assert works(name) == dict.fromkeys(MODES, True)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, of rare operations
@pytest.mark.parametrize("name", LAYERS)
def test_every_mode_is_exact_under_vmap(name):
    assert works_under_vmap(name) == dict.fromkeys(MODES, True)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", LAYERS)
def test_every_mode_is_exact_to_second_order(name):
    assert works_twice(name) == dict.fromkeys(MODES, True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", LAYERS)
def test_every_mode_is_exact_on_a_gpu(name):
    assert works(name, "cuda") == dict.fromkeys(MODES, True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused(name):
    make, _, remedy = REFUSED[name]
    with pytest.raises(
        SimudyError, match=f"layer '0.*{remedy.split()[0].split('=')[0].removesuffix('2d')}"
    ):
        StatelessModel(nn.Sequential(make()))


def test_a_layer_rewritten_for_exactness_keeps_its_values_and_leaves_the_original_alone():
    words, series = torch.randint(0, 5, (3, 4)), torch.randn(3, 4)
    layers = [(nn.Embedding(5, 4, sparse=True), words)]
    layers += [(weight_norm(nn.Linear(4, 3), dim=dim), series) for dim in (0, 1, None)]
    for layer, x in layers:
        model = StatelessModel(layer)
        torch.testing.assert_close(model(model.params, x), layer(x))
    assert layers[0][0].sparse and "forward" not in vars(layers[1][0].parametrizations.weight[0])


def test_torch_itself_still_gets_weight_norm_wrong():
    """When this fails, torch has corrected it, and ``exact._weight_norm`` may go."""
    v, g = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)
    leaves = (v.requires_grad_(), g.requires_grad_())
    fused: Any = vars(torch)["_weight_norm"]
    assert not torch.autograd.gradgradcheck(
        lambda v, g: fused(v, g, 0), leaves, raise_exception=False
    )


def tables() -> str:
    """The two tables of docs/results/layers.md."""
    rows = [
        [name, *map(_exact, works(name).values()), *_further(name), _code(factored(name))]
        for name in LAYERS
    ]
    refused = [[name, reason, remedy] for name, (_, reason, remedy) in REFUSED.items()]
    return _markdown(HEAD, rows) + "\n\n" + _markdown(["layer", "why", "use instead"], refused)


HEAD = ["layer", *MODES, "under vmap", "second derivatives", "kept in factors"]


def _further(name: str) -> list[str]:
    return [_exact(all(kind(name).values())) for kind in (works_under_vmap, works_twice)]


def _exact(ok: bool) -> str:
    return "exact" if ok else "no"


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def test_the_page_shows_these_tables():
    """Entries are checked one by one above; here, that the page says the same."""
    page = PAGE.read_text()
    lines = [
        f"| {name} | {' | '.join(['exact'] * (len(MODES) + 2))} | {_code(factored(name))} |"
        for name in LAYERS
    ]
    lines += [f"| {name} | {reason} | {remedy} |" for name, (_, reason, remedy) in REFUSED.items()]
    shown = [line for line in page.splitlines() if line.startswith("| ")]
    costs = next(i for i, line in enumerate(shown) if line.startswith("| network"))
    shown = shown[:costs]
    heads = [line for line in shown if line.startswith(("| layer", "| ---"))]
    assert [line for line in shown if line not in heads] == lines
    assert len(heads) == 4


if __name__ == "__main__":
    print(tables())
