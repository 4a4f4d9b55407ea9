"""What lies beside the weights in a Trainer's folder, damaged: refused in a line, or passed by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simudy import SGD, Recipe, SimudyError
from simudy.attack.evidence import evidence_from_weights

TEXTS = (
    *(b"", b"[]", b"null", b'"x"', b"12", b"\xff\xfe", b"{" * 2000),
    *(b'{"global_step": %s}' % v for v in (b'"x"', b"-1", b"1e400", b"true", b"null", b'{"a": 1}')),
    b'{"global_step": 4, "epoch": NaN}',
)
GROUP = {"lr": 0.1, "params": [0]}
STATES = (
    *(b"", b"text", b"PK\x03\x04junk", [], {}, torch.zeros(3), {"state": 1}),
    *({"param_groups": groups} for groups in ([], [{}], [{**GROUP, "lr": "x"}])),
    {"state": {0: {"step": "x"}}, "param_groups": [GROUP]},
    {"last_epoch": "x"},
    {"last_epoch": -5, "step_size": 0, "gamma": "g", "base_lrs": []},
    {"last_epoch": 4, "base_lrs": [0.1], "_last_lr": [float("nan")], "step_size": 2, "gamma": 0.1},
    {"last_epoch": 10**12, "base_lrs": [0.1], "step_size": 2, "gamma": 0.1},
)
CASES = [("trainer_state.json", text) for text in TEXTS]
CASES += [(f"{name}.pt", state) for name in ("optimizer", "scheduler") for state in STATES]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def folder(path: Path, weights: dict[str, Tensor]) -> Path:
    path.mkdir()
    torch.save(weights, path / "pytorch_model.bin")
    return path


@pytest.mark.parametrize("name, content", CASES, ids=lambda value: str(value)[:40])
def test_a_damaged_file_beside_the_weights(tmp_path: Path, name: str, content: Any):
    weights = network().state_dict()
    start = folder(tmp_path / "start", weights)
    end = folder(tmp_path / "end", {k: w + 0.1 for k, w in weights.items()})
    if isinstance(content, bytes):
        (end / name).write_bytes(content)
    else:
        torch.save(content, end / name)
    facts: dict[str, Any] = {"shape": (1, 4, 4), "classes": 3, "n": 6}
    recipe = Recipe(SGD(lr=0.1), epochs=4)
    try:
        evidence = evidence_from_weights(network(), start, end, recipe=recipe, **facts)
    except SimudyError as error:
        assert "\n" not in str(error)
    else:
        assert evidence.recipe.steps(6) >= 1
