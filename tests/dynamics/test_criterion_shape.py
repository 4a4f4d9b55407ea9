"""What a criterion may return: one loss per sample, or, without sample weights, their mean."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from simudy import SimudyError, StatelessModel

IMAGES, WEIGHTS = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
LABELS, TARGETS = torch.tensor([0, 2, 1]), torch.randn(3, 3, dtype=torch.float64)


def model(criterion) -> StatelessModel:
    return StatelessModel(nn.Linear(4, 3).double(), criterion=criterion)


def test_losses_of_samples_are_weighted_and_averaged():
    one = model(nn.CrossEntropyLoss(reduction="none"))
    losses = F.cross_entropy(one(one.params, IMAGES), LABELS, reduction="none")
    torch.testing.assert_close(one.loss(one.params, (IMAGES, LABELS)), losses.mean())
    torch.testing.assert_close(
        one.loss(one.params, (IMAGES, LABELS, WEIGHTS)), (WEIGHTS * losses).mean()
    )


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")])
def test_a_scalar_is_the_loss_of_the_batch(criterion):
    one = model(criterion)
    expected = criterion(one(one.params, IMAGES), LABELS)
    torch.testing.assert_close(one.loss(one.params, (IMAGES, LABELS)), expected)


def test_a_scalar_cannot_be_weighted_by_sample():
    one = model(nn.CrossEntropyLoss())
    with pytest.raises(SimudyError, match="reduction='none'"):
        one.loss(one.params, (IMAGES, LABELS, WEIGHTS))


@pytest.mark.parametrize("more", [(), (WEIGHTS,)])
def test_several_losses_a_sample_are_refused(more):
    one = model(nn.MSELoss(reduction="none"))
    with pytest.raises(SimudyError, match=r"\(3, 3\).*mean\(1\)"):
        one.loss(one.params, (IMAGES, TARGETS, *more))


def test_weights_of_another_shape_are_refused():
    one = model(None)
    for weights in (WEIGHTS[:, None], WEIGHTS[:2], WEIGHTS[0]):
        with pytest.raises(SimudyError, match=r"one weight per sample, of shape \(3,\)"):
            one.loss(one.params, (IMAGES, LABELS, weights))


def test_what_is_no_tensor_is_refused():
    one = model(lambda outputs, labels: float(outputs.sum()))
    with pytest.raises(SimudyError, match="gives a float"):
        one.loss(one.params, (IMAGES, LABELS))


def test_outputs_that_are_no_tensor_need_a_criterion():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3).double()

        def forward(self, x):
            return {"logits": self.body(x)}

    one = StatelessModel(Named())
    with pytest.raises(SimudyError, match=r"gives a dict.*criterion="):
        one.loss(one.params, (IMAGES, LABELS))

    def criterion(outputs, labels):
        return F.cross_entropy(outputs["logits"], labels, reduction="none")

    one = StatelessModel(Named(), criterion=criterion)
    assert one.loss(one.params, (IMAGES, LABELS)).dim() == 0
