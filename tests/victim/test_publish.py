"""What is done to weights before they are published, and what the attacker is told of it."""

from __future__ import annotations

import pytest
import torch
from conftest import train_victim
from torch import nn

from simudy import SGD, Recipe
from simudy.app.tasks.measure_exposure import noise
from simudy.attack.first_layer.span import Span
from simudy.dynamics.optim import private
from simudy.victim.publish import Publication, both, noise_of_run
from simudy.victim.train import train


def weights():
    torch.manual_seed(0)
    initial = {"a": torch.randn(200, 100), "b": torch.randn(50)}
    return initial, {k: v + 0.1 * torch.randn_like(v) for k, v in initial.items()}


def test_nothing_is_done_unless_asked():
    initial, final = weights()
    shown = Publication()(initial, final)
    torch.testing.assert_close(shown.weights, final, rtol=0, atol=0)
    assert (shown.precision, shown.hidden) == (None, {})


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_rounded_to_a_type(kind):
    shown = Publication(rounding=kind)(*weights())
    expected = weights()[1]["a"].to(getattr(torch, kind)).float()
    torch.testing.assert_close(shown.weights["a"], expected, rtol=0, atol=0)
    assert shown.precision == kind


def test_int8_is_torchs_quantisation():
    final = weights()[1]["a"]
    shown = Publication(rounding="int8")(*weights())
    step = float(final.abs().max()) / 127
    theirs = torch.fake_quantize_per_tensor_affine(final, step, 0, -127, 127)
    torch.testing.assert_close(shown.weights["a"], theirs)
    assert len(shown.weights["a"].unique()) <= 255
    error = (shown.weights["a"] - final).std()
    assert float(error) == pytest.approx(shown.hidden["a"], rel=0.02)


def test_noise_is_as_strong_as_said_and_drawn_by_the_seed():
    initial, final = weights()
    shown, again, other = (Publication(noise=0.5, seed=s)(initial, final) for s in (0, 0, 1))
    added = shown.weights["a"] - final["a"]
    assert shown.hidden["a"] == pytest.approx(0.05, rel=0.03)
    assert float(added.std()) == pytest.approx(shown.hidden["a"], rel=0.03)
    torch.testing.assert_close(shown.weights, again.weights, rtol=0, atol=0)
    assert not torch.equal(shown.weights["a"], other.weights["a"])


def test_the_smallest_are_pruned():
    initial, final = weights()
    shown = Publication(prune=0.25)(initial, final)
    zero = {k: w == 0 for k, w in shown.weights.items()}
    count = sum(int(z.sum()) for z in zero.values())
    assert count == pytest.approx(0.25 * 20050, abs=1)
    kept = min(float(final[k][~zero[k]].abs().min()) for k in final)
    assert max(float(final[k][zero[k]].abs().max()) for k in final) < kept


def test_what_is_hidden_is_known_to_the_span_and_to_the_exposure(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 30), nn.Tanh(), nn.Linear(30, 2))
    images, labels = torch.randn(4, 1, 16, 16), torch.arange(4) % 2
    evidence = train_victim(module, Recipe(SGD(lr=0.1), epochs=5), images, labels, classes=2)
    shown = Publication(noise=0.02)(evidence.initial, evidence.final)
    evidence.final, evidence.hidden = shown.weights, shown.hidden
    assert Span.of(evidence).rank == 4
    assert float(noise(evidence)["1.weight"].mean()) == pytest.approx(shown.hidden["1.weight"])
    evidence.save(tmp_path)
    assert type(evidence).load(tmp_path, module).hidden == pytest.approx(shown.hidden)
    evidence.final = Publication(prune=0.5)(evidence.initial, evidence.final).weights
    assert float(noise(evidence)["1.weight"].isinf().float().mean()) > 0.4


def test_the_noise_of_a_private_run_is_told_as_strong_as_it_was():
    """Nine steps of it: what real runs, with gradients, differ by from seed to seed."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 30), nn.Tanh(), nn.Linear(30, 2))
    images, labels = torch.randn(4, 1, 16, 16), torch.arange(4) % 2

    def run(seed, noise=0.3):
        rule = private(SGD(lr=0.02, momentum=0.5), noise=noise, samples=4, seed=seed)
        return Recipe(rule, epochs=9, batch_size=1)

    model, one, _ = train(module, images, labels, run(1))
    other = train(module, images, labels, run(2))[1]
    told = noise_of_run(run(1), model.params, 4)
    differ = (one["1.weight"] - other["1.weight"]).std() / 2**0.5
    assert told["1.weight"] == pytest.approx(float(differ), rel=0.05)
    assert noise_of_run(Recipe(SGD(lr=0.1), epochs=9), model.params, 4) == {}
    assert noise_of_run(run(1, noise=0.0), model.params, 4) == {}  # clipped, and nothing hidden
    assert both({"a": 3.0}, {"a": 4.0, "b": 1.0}) == {"a": 5.0, "b": 1.0}
