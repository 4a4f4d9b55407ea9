"""What a membership test found, as files and as lines of the log."""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from simudy.analysis.membership_plot import save_membership_plot
from simudy.files import write_atomically, write_json

log = logging.getLogger(__name__)

SHOWN = 12  # candidates in the printed table


@dataclass(frozen=True)
class Scores:
    """One kind of score, high for members.

    Attributes:
        candidates: ``(k,)``.
        reference: ``(m,)``, of what candidates are compared with.
        members: ``(k,)`` booleans, or None where nobody knows.
    """

    candidates: Tensor
    reference: Tensor
    members: Tensor | None

    def two(self) -> tuple[Tensor, Tensor]:
        """Of members and of others; where nobody knows, of candidates and of the reference."""
        if self.members is None:
            return self.candidates, self.reference
        return self.candidates[self.members], self.candidates[~self.members]


def lay_out(found: dict[str, Any], scores: dict[str, Scores], folder: Path) -> None:
    """Write ``membership.json``, and where there are scores ``membership.csv`` and ``.png``."""
    write_json(folder / "membership.json", found)
    if not scores:
        return
    write_atomically(folder / "membership.csv", _csv(found["candidates"]))
    asked = scores["row space"]
    first, second = asked.two()
    groups = {"candidates": first, "reference": asked.reference}
    if asked.members is not None:
        groups = {"members": first, "held-out": second, "reference": asked.reference}
    curves = {name: one.two() for name, one in scores.items()}
    save_membership_plot(folder / "membership.png", groups, curves)


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")


def announce(found: dict[str, Any]) -> None:
    """Say it."""
    if found["power"] == "none":
        log.info("no power: %s", found["why"])
        return
    layer, rows = found["layer"], sorted(found["candidates"], key=lambda row: -row["score"])
    asked = (layer["name"], layer["rank"], layer["size"], found["power"])
    log.info("asked: layer %s, rank %d of %d; power by counting: %s", *asked)
    log.info("%-24s %-6s %8s %8s", "candidate", "member", "score", "p")
    for row in rows[:SHOWN]:
        known = {True: "yes", False: "no", None: "?"}[row["member"]]
        log.info("%-24s %-6s %8.3f %8.4f", row["name"][-24:], known, row["score"], row["p"])
    if len(rows) > SHOWN:
        log.info("… and %d more in membership.csv", len(rows) - SHOWN)
    _announce_figures(found, len(rows))


def _announce_figures(found: dict[str, Any], count: int) -> None:
    if found["least_p"] > 0.01:
        least = (found["least_p"], found["reference"])
        log.info("no p-value is below %.3f: %d images to compare with are few", *least)
    else:
        few = (found["below_1_percent"], count, found["expected_by_chance"])
        log.info("%d of %d candidates have p ≤ 0.01; by chance %.1f would", *few)
    words = "%s: AUC %.4f, %.0f %% found at 1 %% false positives (%s)"
    if found["auc"] is not None:
        figures = (found["auc"], 100 * found["tpr_at_1_percent"], found["compared"])
        log.info(words, "row space", *figures)
    if (loss := found["loss"]) is not None:
        log.info(words, "loss", loss["auc"], 100 * loss["tpr"], found["compared"])
    if (even := found["uniform"]) is not None:
        words = "p-values of held-out candidates against uniform: KS %.3f, p %.3f"
        log.info(words, even["distance"], even["p"])
