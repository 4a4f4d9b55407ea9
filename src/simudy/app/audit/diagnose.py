"""``task=diagnose``: why did nothing come out, and what would change it? One page from one run."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from simudy.analysis.report.conclusion import FITTED
from simudy.app.audit.measures import (
    CHAOTIC,
    LINEAR,
    STOPPED,
    Line,
    Present,
    blank,
    fitted,
    floored,
    linear,
    measured,
    off,
    precise,
    ranked,
    sensitive,
    spent,
)
from simudy.app.audit.told import guesses, is_own_victim
from simudy.app.settings import factories
from simudy.app.store import history, reconstruction
from simudy.app.store.run_directory import RunDirectory, read_result
from simudy.app.tasks import prepare
from simudy.app.tasks.run import rescore
from simudy.attack.evidence import Evidence
from simudy.dynamics.optim.hyperparameters import scale_hyperparameters
from simudy.files import write_atomically, write_json

log = logging.getLogger(__name__)

NOT_SHOWN = (
    "That nothing came out does not show that nothing can be found: not by other starts, more "
    "iterations, another method, checkpoints or a better guess of the recipe; nor that these "
    "weights keep their images. Membership shows where pictures do not: task=membership."
)


def diagnose(cfg: DictConfig, folder: RunDirectory) -> dict[str, Any]:
    """Write ``diagnosis.json`` and ``diagnosis.txt`` beside a run, and its report anew.

    Raises:
        SimudyError: there is no finished search in the directory.
    """
    own: Any = OmegaConf.merge(folder.settings(cfg), {"task": "diagnose"})
    result, now = read_result(folder.result), present(own, folder)
    lines = list(_lines(own, now, result, history.load(folder.history)))
    changes = list(_changes(own, now, lines))
    found = {
        "status": result["status"],
        "lines": [line.as_dict() for line in lines],
        "changes": changes,
        "not_shown": NOT_SHOWN,
    }
    write_json(folder.diagnosis, found)
    text = _in_words(lines, changes)
    write_atomically(folder.diagnosis.with_suffix(".txt"), text.encode())
    for line in text.splitlines():
        log.info("%s", line)
    rescore(cfg, folder)
    return found


def present(cfg: DictConfig, folder: RunDirectory) -> Present:
    """The search as it ended: dummies, labels and learned hyper-parameters."""
    held = prepare.prepare_evidence(cfg, folder, factories.device("cpu"))
    tensors, _ = reconstruction.read(folder.reconstruction)
    recipe = factories.guessed(cfg, held.recipe)
    learned = {
        name.removeprefix("learned."): value
        for name, value in tensors.items()
        if name.startswith("learned.")
    }
    if learned:
        rule = scale_hyperparameters(recipe.optimizer, **learned)
        recipe = dataclasses.replace(recipe, optimizer=rule)
    return Present(held, recipe, tensors["images"], tensors["labels"])


def _lines(
    cfg: DictConfig, now: Present, result: Mapping[str, Any], rows: list[dict[str, Any]]
) -> Iterator[Line]:
    e = now.evidence
    yield floored(result)
    yield measured("fit", "1 − cos of the run replayed to the real one", lambda: fitted(now))
    yield measured("blank", "1 − cos of the run on noise", lambda: blank(now))
    yield measured("m_lin", "M_lin, on the present dummies", lambda: linear(now))
    yield measured("sensitivity", "end moved by noise", lambda: sensitive(now))
    yield ranked(e)
    yield measured("off_units", "first-layer units off at both ends", lambda: off(now))
    yield precise(e)
    yield _recipe(cfg, e)
    yield spent(result, rows)


def _recipe(cfg: DictConfig, held: Evidence) -> Line:
    """What of the run is known, and how."""
    guessed, read = guesses(cfg), list(held.notes.get("findings", ()))
    typed = "exact: trained here" if is_own_victim(cfg) else "typed, or as the evidence says"
    typed = "known, and departed from" if is_own_victim(cfg) and guessed else typed
    figure = f"recipe {typed}; {len(guessed)} guessed; {len(read)} facts read from files"
    told = [*(f"guessed {name}={value}" for name, value in guessed.items()), *read]
    listed = f" ({'; '.join(told)})" if told else ""
    meaning = (
        "A recipe that is only typed may be wrong, and a wrong one looks like images that cannot "
        f"be found{listed}."
    )
    if is_own_victim(cfg) and not guessed:
        meaning = "A wrong recipe is not the reason."
    return Line("recipe", "what is known of the run", figure, meaning, float(len(guessed)))


def _changes(cfg: DictConfig, now: Present, lines: list[Line]) -> Iterator[str]:
    """What would change the outcome, by the figures above; the surest first."""
    value = {line.key: line.value for line in lines}
    yield from _before_the_search(cfg, now, value)
    if value["blank"] is not None and value["blank"] <= FITTED:
        yield "task=membership, or outer.decode=true: they take off what weight decay moved."
    far = (m := value["m_lin"]) is not None and m < LINEAR
    if far or _above(value["sensitivity"], CHAOTIC):
        yield "Weights from inside the run (evidence.checkpoints=[…]): its parts are tamer."
        yield "Or a run of fewer epochs, or on fewer images, of the same trainer."
    if _above(value["off_units"], 1) and not cfg.outer.decode:
        yield "Decode off the units: outer.decode=true."
    yield "Searches of other seeds, compared with this: task=verdict verdict.runs=[…]."


def _before_the_search(
    cfg: DictConfig, now: Present, value: Mapping[str, float | None]
) -> Iterator[str]:
    """What is wrong with what the search was given; else, that it was too short."""
    true, simulated, guessed = now.evidence.recipe.epochs, now.recipe.epochs, guesses(cfg)
    if simulated < true:
        yield f"Simulate all epochs: {simulated} of {true} are (attack.recipe.epochs)."
    unfit, hidden = _above(value["fit"], FITTED), _above(value["precision"], CHAOTIC)
    doubtful = unfit and bool(guessed or not is_own_victim(cfg))
    if doubtful:
        doubted = ", ".join(guessed) or "rule, rate, batch, order"
        yield f"Check the recipe: {doubted}. Learn the rate along: dummy.learn=[lr]."
    if hidden:
        yield "The weights as they were trained, before they were rounded or noised."
    if _above(value["compute"], STOPPED) or (unfit and not (doubtful or hidden)):
        yield f"More iterations, from the beginning: outer.iterations={2 * cfg.outer.iterations}."


def _above(value: float | None, limit: float) -> bool:
    return value is not None and value > limit


def _in_words(lines: list[Line], changes: list[str]) -> str:
    """The page as plain text."""
    told = [f"{line.name}: {line.figure}\n  {line.meaning}" for line in lines]
    return "\n".join(
        [*told, "what would change it:", *(f"  - {change}" for change in changes), NOT_SHOWN, ""]
    )
