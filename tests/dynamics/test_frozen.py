"""Parameters with ``requires_grad=False`` do not train: the model holds them by its buffers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simudy import Evidence, Recipe, StatelessModel, simulate
from simudy.attack.evidence import evidence_from_weights
from simudy.dynamics.adjoint import Recompute
from simudy.dynamics.gradient import Factored, Mixed, Reverse, Traced
from simudy.dynamics.optim import SGD, AdamW
from simudy.errors import SimudyError

MODES = [Reverse(), Mixed(), Traced(), Factored(layers="all"), Factored(inner=Mixed())]


class Adapted(nn.Module):
    """A frozen trunk, a matrix of low rank beside it, a head to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.norm, self.head = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.up, self.down = nn.Parameter(torch.randn(4, 1)), nn.Parameter(torch.randn(1, 3))
        self.trunk.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.trunk.weight + self.up @ self.down
        return self.head(self.norm(F.linear(x, weight, self.trunk.bias)).tanh())


def _module() -> Adapted:
    return Adapted().double()


def _batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 3).double(), torch.randint(2, (4,))) for _ in range(4)]


def _trained(module: nn.Module, batches: list, optimizer: torch.optim.Optimizer) -> dict:
    for images, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(module(images), labels).backward()
        optimizer.step()
    return module.state_dict()


@pytest.mark.parametrize("gradient", MODES)
def test_what_is_frozen_does_not_train(gradient):
    module, batches = _module(), _batches()
    model = StatelessModel(module)
    assert set(model.params) == {
        *("up", "down", "norm.weight", "norm.bias", "head.weight", "head.bias")
    }
    assert torch.equal(model.buffers["trunk.weight"], module.trunk.weight)
    rule = SGD(0.1, 0.9, weight_decay=0.1)
    end = simulate(
        model.loss, model.params, batches, rule, adjoint=Recompute(every=2), gradient=gradient
    )
    optimizer = torch.optim.SGD(module.parameters(), 0.1, 0.9, weight_decay=0.1)
    theirs = _trained(module, batches, optimizer)
    for name, p in end.items():
        p = p.dense() if hasattr(p, "dense") else p
        torch.testing.assert_close(p, theirs[name], rtol=1e-10, atol=1e-12)


def test_the_model_moves_with_what_is_frozen():
    model = StatelessModel(_module())
    other = model.to(torch.float32)
    assert set(other.params) == set(model.params)
    assert other.buffers["trunk.weight"].dtype == torch.float32


def test_what_is_frozen_trains_where_it_is_given_among_the_parameters():
    module, batches = _module(), _batches()
    model = StatelessModel(module)
    params = {**model.params, "trunk.weight": model.buffers["trunk.weight"]}
    end = simulate(model.loss, params, batches, AdamW(0.1))
    module.trunk.weight.requires_grad_(True)
    theirs = _trained(module, batches, torch.optim.AdamW(module.parameters(), 0.1))
    torch.testing.assert_close(end["trunk.weight"], theirs["trunk.weight"], rtol=1e-10, atol=0)


FACTS = {"recipe": Recipe(epochs=2), "shape": (3,), "classes": 2, "n": 4}


def _files() -> tuple[Adapted, dict, dict]:
    """A module, and its state dicts before and after training."""
    module = _module().eval()
    before = copy.deepcopy(module.state_dict())
    after = _trained(module, _batches(), torch.optim.SGD(module.parameters(), 0.1))
    return module, before, copy.deepcopy(after)


def test_evidence_takes_files_that_hold_what_is_frozen(tmp_path):
    module, before, after = _files()
    fresh = _module().eval()
    evidence = evidence_from_weights(fresh, before, after, **FACTS)
    assert set(evidence.initial) == set(evidence.final) == set(evidence.model.params)
    assert torch.equal(evidence.model.buffers["trunk.weight"], before["trunk.weight"])
    logits = evidence.model(evidence.final, images := torch.randn(5, 3).double())
    torch.testing.assert_close(logits, module(images))

    evidence.save(tmp_path)
    again = Evidence.load(tmp_path, _module().eval())
    torch.testing.assert_close(again.model(again.final, images), logits)


def test_evidence_made_by_hand_takes_all_parameters_too():
    module, before, _ = _files()
    initial = {k: before[k] for k, _ in module.named_parameters()}
    evidence = Evidence(StatelessModel(module), initial, dict(module.named_parameters()), **FACTS)
    assert set(evidence.initial) == set(evidence.final) == set(evidence.model.params)


def test_a_frozen_parameter_that_moved_is_refused():
    module, before, after = _files()
    after["trunk.weight"] = after["trunk.weight"] + 0.1
    with pytest.raises(SimudyError, match=r"final weights hold another 'trunk\.weight'"):
        evidence_from_weights(module, before, after, **FACTS)
