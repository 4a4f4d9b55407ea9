"""The picture of a membership test: how the scores lie, and the ROC."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from simudy.analysis.calibration import auc, roc
from simudy.files import write_atomically
from simudy.pictures import png_of

COLOURS = ("#12805c", "#c2571a", "#a3abb5")
LEAST = 1e-3  # the lowest false positive rate that is drawn


def save_membership_plot(
    path: Path, groups: Mapping[str, Tensor], curves: Mapping[str, tuple[Tensor, Tensor]]
) -> None:
    """Write a PNG with two panels.

    Args:
        groups: scores ``(k,)`` by what a person calls them.
        curves: scores of members and of others, by the name of the score.
    """
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _histogram(left, {name: scores for name, scores in groups.items() if len(scores)})
    _curves(right, {name: pair for name, pair in curves.items() if all(map(len, pair))})
    write_atomically(path, png_of(figure, dpi=110))


def _histogram(axes: Any, groups: Mapping[str, Tensor]) -> None:
    every = torch.cat(list(groups.values()))
    edges = torch.linspace(float(every.min()), float(every.max()) + 1e-9, 31).tolist()
    for (name, scores), colour in zip(groups.items(), COLOURS, strict=False):
        weights = [1 / len(scores)] * len(scores)
        label = f"{name} ({len(scores)})"
        axes.hist(scores.tolist(), edges, weights=weights, color=colour, alpha=0.6, label=label)
    axes.set_xlabel("score: −log10 of the share outside the row space")
    axes.set_ylabel("fraction of the images")
    axes.legend(frameon=False)


def _curves(axes: Any, curves: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    for (name, (members, others)), colour in zip(curves.items(), COLOURS, strict=False):
        false, true = roc(members, others)
        label = f"{name}, AUC {auc(members, others):.3f}"
        axes.step(false.clamp(min=LEAST), true, where="post", color=colour, label=label)
    chance = torch.logspace(-3, 0, 50)
    axes.plot(chance, chance, color="#5b6470", linestyle=":", label="chance")
    axes.set_xscale("log")
    axes.set_xlim(LEAST, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("false positives")
    axes.set_ylabel("true positives")
    axes.legend(frameon=False, loc="center left")
