"""After the search, on request: the images decoded from the units they never fired."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial
from typing import Any

from omegaconf import DictConfig

from simudy.app.store.run_directory import PRUNED
from simudy.app.translate import in_settings
from simudy.attack.evidence import Evidence
from simudy.attack.first_layer.off_units import decode_off_units
from simudy.errors import SimudyError
from simudy.outcome import Reconstruction

log = logging.getLogger(__name__)


def decode(
    found: Reconstruction, evidence: Evidence, cfg: DictConfig
) -> tuple[Reconstruction, dict[str, Any]]:
    """What the search found, exact where all images are certified, and facts for the result.

    Objective and distance stay those of the search's images. ``certified`` counts the certified
    images; ``certificates`` lists them all, in the order of the images, where these were replaced.
    """
    if found.status in ("interrupted", PRUNED):
        return found, {}
    try:
        decoded = decode_off_units(evidence, found.images, on_round=partial(_told, evidence.n))
    except SimudyError as reason:
        log.warning("outer.decode: %s", in_settings(str(reason), cfg))
        return found, {"certified": None}
    count = int(decoded.certified.sum())
    log.info("off units certify %d of %d images", count, decoded.n)
    if not decoded.complete:
        log.info("these alone do not determine the images: those of the search are kept")
        return found, {"certified": count}
    labels = found.labels[decoded.starts]
    exact = dataclasses.replace(found, images=decoded.images, labels=labels)
    return exact, {"certified": count, "certificates": decoded.certificates.tolist()}


def _told(n: int | None, found: dict[str, int]) -> None:
    log.info("decoding off units, round %d: %d of %s", found["round"], found["certified"], n)
