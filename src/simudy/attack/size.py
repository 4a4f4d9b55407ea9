"""How many images the network was trained on: by the rank of the displacement, or by what surplus
dummies are worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from simudy import stopping
from simudy.attack.evidence import Evidence
from simudy.attack.first_layer.span import Span
from simudy.attack.methods.simudy import SimudyProblem
from simudy.dynamics import tree
from simudy.dynamics.gradient import Reverse
from simudy.dynamics.optim import Rule, hyperparameters
from simudy.dynamics.optim.rule import advance
from simudy.dynamics.tree import Params
from simudy.errors import SimudyError

GIB = 2**30


@dataclass(frozen=True)
class RankEstimate:
    """The number of images as the rank of the first layer's displacement.

    Attributes:
        n: the estimate; images that depend linearly on others are not counted.
        gap: singular value n over the next, infinite where that is 0. Below about 10 the estimate
            is a guess; 1 says that there is no next one: n or more.
        singular_values: all of them, descending.
    """

    n: int
    gap: float
    singular_values: Tensor


def rank_estimate(evidence: Evidence) -> RankEstimate:
    """n for free, where the first layer is linear in the image and the rule is of the SGD family
    (see ``Span``).

    Raises:
        SimudyError: the model or the rule is of another kind; then give surplus dummies and rank
            their contributions.
    """
    span = Span.of(evidence)
    values, n = span.singular_values, span.rank
    gap = float(values[n - 1] / values[n]) if n < len(values) else 1.0
    return RankEstimate(n, gap, values)


@torch.no_grad()
def contributions(problem: SimudyProblem, *, memory: float = 1.0) -> Tensor:
    """How far each dummy alone pushed the weights: ‖Σ_t η_t ∇ℓ_i(θ̂_t)/|B_t|‖ over the simulated
    run, ``(m,)``.

    Real dummies score high and surplus ones low (Tian et al., ICLR 2025, unknown dataset size).
    Exact, also where BatchNorm mixes the batch: ∇ℓ_i is the derivative of the i-th loss of its
    batch. Time: one backward pass per dummy and step, and one more simulated run for every
    ``memory`` GiB of sums, of which a dummy takes as much as θ.

    Args:
        problem: of method ``simudy``, with its dummies where the search left them. η_t is the
            rule's ``lr``, the first where several groups have one, and 1 where there is none.
        memory: GiB to spend on the sums.
    """
    start, m = problem.evidence.initial, len(problem.dummy.latent)
    size = sum(p.numel() * p.element_size() for p in start.values())
    together = max(1, int(memory * GIB / size))
    return torch.cat([_norms_of_sums(problem, rows) for rows in torch.arange(m).split(together)])


def keep_top(values: Tensor, contributions: Tensor, n: int) -> Tensor:
    """The ``n`` of ``values (m, …)`` (images, labels) with the highest contributions ``(m,)``,
    highest first.
    """
    if not 1 <= n <= len(contributions):
        raise SimudyError(
            f"cannot keep {n} of {len(contributions)} dummies: give 1 to {len(contributions)}"
        )
    return values[contributions.argsort(descending=True)[:n]]


def matched_table(contributions: Tensor, match: Tensor) -> dict[str, dict[str, float]]:
    """Contributions ``(m,)`` of the dummies that are some true image's partner, and of the rest:
    count, mean, min, max.

    Args:
        match: ``(n,)`` index of each true image's dummy, negative where it has none (as the scorer
            pairs them).
    """
    is_matched = torch.zeros(len(contributions), dtype=torch.bool)
    is_matched[match[match >= 0].cpu()] = True
    parts = {
        "matched": contributions.cpu()[is_matched],
        "unmatched": contributions.cpu()[~is_matched],
    }
    return {name: _summary(part) for name, part in parts.items()}


def _summary(values: Tensor) -> dict[str, float]:
    if not len(values):
        return {"count": 0}
    return {
        "count": len(values),
        "mean": values.mean().item(),
        "min": values.min().item(),
        "max": values.max().item(),
    }


def _norms_of_sums(problem: SimudyProblem, rows: Tensor) -> Tensor:
    """The contributions of the dummies ``rows``, from one replay of the run."""
    recipe, params = problem.recipe, problem.evidence.initial
    rules, wanted = problem.dummy.rules(recipe), set(rows.tolist())
    state, sums = rules[0].init(params), {i: tree.scale(0.0, params) for i in rows.tolist()}
    steps = zip(
        recipe.batches(len(problem.dummy.latent)), problem.dummy.batches(recipe), rules, strict=True
    )
    grads = Reverse().of(problem.evidence.model.loss)
    for indices, batch, rule in steps:
        stopping.check()
        pull = _pullback(problem, params, batch)
        for place, i in enumerate(indices.tolist()):
            if i in wanted:
                sums[i] = tree.add(sums[i], tree.scale(_lr(rule), pull(place)))
        params, state = advance(rule, grads, batch, state, params)
    return torch.stack([tree.norm(total) for total in sums.values()])


def _pullback(
    problem: SimudyProblem, params: Params, batch: tuple[Tensor, ...]
) -> Callable[[int], Params]:
    """A function of a place in the batch: the gradient of that place's share of the batch loss."""
    model, (inputs, targets, *_) = problem.evidence.model, batch
    losses, pull, *_ = torch.func.vjp(lambda p: model.criterion(model(p, inputs), targets), params)

    def gradient(place: int) -> Params:
        share = torch.zeros_like(losses)
        share[place] = 1 / len(losses)
        return pull(share)[0]

    return gradient


def _lr(rule: Rule) -> float | Tensor:
    rates = [value for path, value in hyperparameters(rule).items() if path.split("/")[-1] == "lr"]
    return rates[0] if rates else 1.0
