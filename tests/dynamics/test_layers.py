"""Which layers each gradient mode and adjoint differentiates exactly: the table of
docs/results/layers.md, entry by entry.

``python tests/dynamics/test_layers.py`` prints the tables for the page.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
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


def orthogonal(kind: str, out: int = 4) -> nn.Module:
    return parametrizations.orthogonal(nn.Linear(4, out), orthogonal_map=kind)


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
    "BatchNorm2d, eval mode": (lambda: nn.BatchNorm2d(2).eval(), PIXELS),
    "GroupNorm": (lambda: nn.GroupNorm(1, 2), PIXELS),
    "LayerNorm": (lambda: nn.LayerNorm(4), SERIES),
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
    "MaxPool2d": (lambda: nn.MaxPool2d(2), PIXELS),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), PIXELS),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(3), PIXELS),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(3), PIXELS),
    "Upsample, bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), PIXELS),
    "ReLU": (nn.ReLU, VECTOR),
    "GELU": (nn.GELU, VECTOR),
    "PReLU": (nn.PReLU, VECTOR),
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
        lambda: parametrizations.weight_norm(nn.Conv2d(2, 3, 3), dim=None),
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


class Case(NamedTuple):
    """A small network around the layer, one batch, and directions to differentiate along."""

    model: StatelessModel
    inputs: dict[str, list[Tensor]]  # images, soft labels, θ0
    words: Tensor | None  # what is read where images are no numbers
    along: dict[str, list[Tensor]]

    def outcome(self, inputs: dict[str, list[Tensor]], mode: str = "Reverse Direct") -> Tensor:
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
    images = torch.randn(3, *shape, dtype=torch.float64) if words is None else None
    # A layer before and one after, so that the derivative passes through the weights and through
    # the inputs.
    before = (
        nn.Identity()
        if words is not None
        else nn.Sequential(nn.Linear(shape[-1], shape[-1]), nn.Tanh())
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
    along = {kind: [torch.randn_like(leaf) for leaf in leaves] for kind, leaves in inputs.items()}
    if (
        "householder" in name
    ):  # the signs on the diagonal of its matrix are rounded: a step there is a jump
        for p, d in zip(inputs["parameters"], along["parameters"], strict=True):
            d.mul_(p.abs() != 1)
    return Case(model, inputs, None if words is None else words.to(device), along)


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

    def moved(kind: str) -> Callable[[list[Tensor]], Tensor]:
        return lambda leaves: case.outcome({**case.inputs, kind: leaves})

    return {
        kind: directional(moved(kind), leaves, case.along[kind], step=1e-5) if leaves else 0.0
        for kind, leaves in case.inputs.items()
    }


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", LAYERS)
def test_every_mode_is_exact_on_a_gpu(name):
    with torch.backends.cudnn.flags(
        enabled=not any(kind in name for kind in ("RNN", "LSTM", "GRU"))
    ):
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
    layers += [
        (parametrizations.weight_norm(nn.Linear(4, 3), dim=dim), series) for dim in (0, 1, None)
    ]
    for layer, x in layers:
        model = StatelessModel(layer)
        torch.testing.assert_close(model(model.params, x), layer(x))
    assert layers[0][0].sparse and "forward" not in vars(layers[1][0].parametrizations.weight[0])


def test_torch_itself_still_gets_weight_norm_wrong():
    """When this fails, torch has corrected it, and ``exact._weight_norm`` may go."""
    v, g = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)
    leaves = (v.requires_grad_(), g.requires_grad_())
    assert not torch.autograd.gradgradcheck(
        lambda v, g: torch._weight_norm(v, g, 0), leaves, raise_exception=False
    )


def tables() -> str:
    """The two tables of docs/results/layers.md."""
    head = ["layer", *MODES, "kept in factors"]
    rows = [
        [name, *("exact" if ok else "no" for ok in works(name).values()), _code(factored(name))]
        for name in LAYERS
    ]
    refused = [[name, reason, remedy] for name, (_, reason, remedy) in REFUSED.items()]
    return _markdown(head, rows) + "\n\n" + _markdown(["layer", "why", "use instead"], refused)


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def test_the_page_shows_these_tables():
    """Entries are checked one by one above; here, that the page says the same."""
    page = (Path(__file__).parents[2] / "docs" / "results" / "layers.md").read_text()
    lines = [
        f"| {name} | {' | '.join(['exact'] * len(MODES))} | {_code(factored(name))} |"
        for name in LAYERS
    ]
    lines += [f"| {name} | {reason} | {remedy} |" for name, (_, reason, remedy) in REFUSED.items()]
    shown = [line for line in page.splitlines() if line.startswith("| ")]
    heads = [line for line in shown if line.startswith(("| layer", "| ---"))]
    assert [line for line in shown if line not in heads] == lines
    assert len(heads) == 4


if __name__ == "__main__":
    print(tables())
