"""Tiny training runs in float64, always the same, that rules and gradient modes are checked on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simudy.dynamics import tree
from simudy.dynamics.adjoint import Direct, Recompute
from simudy.dynamics.gradient import Gradient, Mixed, Reverse
from simudy.dynamics.model import StatelessModel
from simudy.dynamics.optim.hyperparameters import with_hyperparameters
from simudy.dynamics.optim.rule import Rule
from simudy.dynamics.simulate import simulate
from simudy.dynamics.tree import Params

Inputs = dict[str, list[Tensor]]  # what a run is differentiated by, each input a list of tensors
Mode = tuple[Direct | Recompute, Gradient]

MODES: tuple[Mode, ...] = (
    (Direct(), Reverse()),
    (Direct(), Mixed()),
    (Recompute(every=2), Reverse()),
    (Recompute(every=2), Mixed()),
)


@dataclass
class Problem:
    """A tiny training run: a network, batches ``(images, soft labels, sample weights)``, and a view
    of the result.
    """

    name: str
    module: nn.Module
    batches: list[tuple[Tensor, Tensor, Tensor]]

    def __post_init__(self) -> None:
        self.model = StatelessModel(self.module)
        self.view = tree.map(
            lambda p: torch.cos(torch.arange(p.numel()) + 1.0).view_as(p).to(p), self.model.params
        )

    def inputs(self) -> Inputs:
        """The data and θ0, as lists of tensors."""
        images, labels, weights = (list(column) for column in zip(*self.batches, strict=True))
        return {
            "images": images,
            "labels": labels,
            "sample weights": weights,
            "θ0": list(self.model.params.values()),
        }

    def run(self, rule: Rule, inputs: Inputs, mode: Mode = MODES[0]) -> Params:
        """Final parameters; entries of ``inputs`` that are no data are fields of the rule."""
        given = {**self.inputs(), **inputs}
        params = dict(zip(self.model.params, given.pop("θ0"), strict=True))
        batches = list(
            zip(given.pop("images"), given.pop("labels"), given.pop("sample weights"), strict=True)
        )
        rule = with_hyperparameters(rule, {path: value for path, (value,) in given.items()})
        return simulate(self.model.loss, params, batches, rule, adjoint=mode[0], gradient=mode[1])

    def outcome(self, rule: Rule, inputs: Inputs, mode: Mode = MODES[0]) -> Tensor:
        """One number that every final parameter has a share in."""
        return tree.dot(self.view, self.run(rule, inputs, mode))


def problems(steps: int = 3) -> list[Problem]:
    """The networks rules are checked on: smooth, float64, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mlp = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        norm = nn.BatchNorm2d(2)
        norm.running_mean, norm.running_var = torch.randn(2), torch.rand(2) + 0.5
        conv = (
            nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.Softplus(), nn.Flatten(), nn.Linear(8, 3))
            .double()
            .eval()
        )
        return [
            Problem("perceptron", mlp, [_batch(4) for _ in range(steps)]),
            Problem("convolutional network", conv, [_batch(1, 4, 4) for _ in range(steps)]),
        ]


def directional(
    fn: Callable[[list[Tensor]], Tensor],
    at: Sequence[Tensor],
    along: Sequence[Tensor],
    *,
    step: float,
) -> float:
    """Derivative of ``fn`` along a direction by central differences of fourth order.

    Args:
        fn: ``(tensors) -> scalar``.
        at: the point, in float64.
        along: the direction, shaped alike.
        step: length of a difference, over that of ``along``.
    """

    def slope(h: float) -> Tensor:
        ahead, behind = ([x + s * h * d for x, d in zip(at, along, strict=True)] for s in (1, -1))
        return (fn(ahead) - fn(behind)) / (2 * h)

    with torch.no_grad():
        return float((4 * slope(step / 2) - slope(step)) / 3)


def _batch(*shape: int, n: int = 3, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.randn(n, classes, dtype=torch.float64).softmax(1)
    return (
        torch.randn(n, *shape, dtype=torch.float64),
        labels,
        torch.rand(n, dtype=torch.float64) + 0.5,
    )


def dead() -> Problem:
    """A perceptron with a dead unit, and a first batch of weight zero: some gradients vanish, then
    all do.
    """
    problem = problems()[0]
    first, _, last = problem.module.children()
    with torch.no_grad():
        next(bias for name, bias in first.named_parameters() if name == "bias")[0] = -100.0
    (images, labels, weights), *others = problem.batches
    module = nn.Sequential(first, nn.ReLU(), last)
    return Problem(
        "perceptron with a dead unit",
        module,
        [*others, (images, labels, torch.zeros_like(weights))],
    )
