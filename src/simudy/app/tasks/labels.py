"""How the dummies' labels begin: the one thing an ablation may draw from the secret.

It is a plain tensor before the attack sees it: nothing on the attack's path takes a secret.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from simudy.app.store.secret import Secret
from simudy.errors import SimudyError


def resolve_labels(said: Any, secret: Secret | None) -> str | Tensor:
    """How labels begin; ``true`` and ``wrong`` draw on the secret's, which no attacker holds:
    ablations.
    """
    if OmegaConf.is_list(said):
        return _given(list(said))
    if (said := str(said).lower()) in ("true", "wrong"):  # YAML reads the first as a truth value
        if secret is None:
            raise SimudyError(
                f"dummy.labels={said} needs the secret, and there is none: choose balanced or "
                "learned"
            )
        true = secret.true_targets
        if true is None or (said == "wrong" and not secret.labelled):
            raise SimudyError(
                f"dummy.labels={said} needs the classes of the true images: give them as "
                "sub-folders, or as labels of an .npz file"
            )
        if said == "true":
            return true
        return (secret.victim.labels + 1) % len(secret.victim.classes)
    if said not in ("balanced", "learned"):
        raise SimudyError(
            f"dummy.labels={said}: choose balanced, learned, true or wrong, or give a list of "
            "class numbers"
        )
    return said


def _given(labels: list[Any]) -> Tensor:
    if labels and all(type(label) in (int, float) for label in labels):
        real = any(isinstance(label, float) for label in labels)  # of a regression
        return torch.tensor(labels, dtype=torch.float64 if real else torch.int64)
    raise SimudyError(f"dummy.labels={labels}: give class numbers, counted from 0")
