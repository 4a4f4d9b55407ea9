"""``record``: what it sees of a plain PyTorch script, and when it says that a run is faithful.

The runs below are plain torch loops; the replay is ``simulate``: two independent paths.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import simudy
from simudy.app.recorder import seen_run
from simudy.app.recorder.replay import Verdict
from simudy.app.store.secret import Secret
from simudy.attack.evidence import Evidence
from simudy.dynamics.optim import Clipped, ClippedByValue, Groups, Started
from simudy.errors import SimudyError

N, EPOCHS = 10, 3
X = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % 3


def cnn(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(nn.Conv2d(1, 4, 3), *norms, nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))


def train(
    net,
    optimizer,
    *,
    loss=nn.functional.cross_entropy,
    size=N,
    epochs=EPOCHS,
    shuffle=False,
    drop_last=False,
    gather=1,
    scheduler=None,
    shape=lambda net: None,
    labels=Y,
    after_epoch=lambda: None,
):
    """The loop of every tutorial, by hand."""
    images = X.to(next(net.parameters()).dtype)
    generator = torch.Generator().manual_seed(3)
    taken = 0
    for _ in range(epochs):
        order = torch.randperm(N, generator=generator) if shuffle else torch.arange(N)
        for rows in order.split(size):
            if drop_last and len(rows) < size:
                continue
            (loss(net(images[rows]), labels[rows]) / gather).backward()
            taken += 1
            if taken % gather:
                continue
            shape(net)
            optimizer.step()
            optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()
        after_epoch()


def sgd(net, **options):
    return torch.optim.SGD(net.parameters(), **{"lr": 0.1, **options})


def norm_clipped(net):
    clip_grad_norm_(net.parameters(), 0.4)


def value_clipped(net):
    clip_grad_value_(net.parameters(), 0.03)


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=50)


def figures(recording) -> Verdict:
    assert recording.replayed is not None, recording
    return recording.replayed


RUNS = {
    "plain": ({}, {}),
    "in batches, shuffled": ({}, {"size": 4, "shuffle": True}),
    "drop_last": ({}, {"size": 4, "shuffle": True, "drop_last": True}),
    "accumulation": ({}, {"size": 5, "gather": 2}),
    "clipped by norm": ({}, {"shape": norm_clipped}),
    "clipped by value": ({}, {"shape": value_clipped}),
    "smoothing": ({}, {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}),
    "class weights": (
        {},
        {"loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double()), "size": 4},
    ),
    "a mean by hand": (
        {},
        {"loss": lambda out, y: nn.functional.cross_entropy(out, y, reduction="none").mean()},
    ),
    "a sum": ({"lr": 0.01}, {"loss": nn.CrossEntropyLoss(reduction="sum")}),
    "momentum and decay": ({"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, {"size": 5}),
}


@pytest.mark.parametrize("name", RUNS)
def test_in_float64_the_replay_lands_on_the_script(name):
    options, how = RUNS[name]
    net = cnn().double()
    before = copy.deepcopy(net.state_dict())
    optimizer = sgd(net, **options)
    with simudy.record(net, optimizer) as recording:
        train(net, optimizer, **how)
    assert recording.faithful, recording
    assert figures(recording).error < 1e-9
    evidence = recording.evidence
    assert all(torch.equal(evidence.initial[k], before[k]) for k in before)
    assert all(torch.equal(evidence.final[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "NAdam", "Adagrad"])
@pytest.mark.parametrize("norm", [False, True])
def test_in_float32_the_replay_is_as_near_as_rounding_lets_it(kind, norm):
    net = cnn(norm)
    optimizer = getattr(torch.optim, kind)(net.parameters(), lr=0.01)
    with simudy.record(net, optimizer) as recording:
        train(net, optimizer, size=4, shuffle=True)
    assert recording.faithful, recording
    assert figures(recording).error < 1e-4
    assert set(figures(recording).loose) <= {"0.bias"}  # which a BatchNorm takes away again


def test_the_recipe_is_as_a_person_would_write_it():
    net = cnn().double()
    optimizer = sgd(net)
    with simudy.record(net, optimizer) as recording:
        train(net, optimizer, size=4)
    assert recording.evidence.recipe == simudy.Recipe(simudy.SGD(lr=0.1), epochs=3, batch_size=4)
    with simudy.record(net, optimizer) as recording:
        train(net, optimizer, size=4, shuffle=True, shape=norm_clipped)
    recipe = recording.evidence.recipe
    assert recipe.optimizer == Clipped(simudy.SGD(lr=0.1), max_norm=0.4)
    assert (recipe.epochs, recipe.batch_size) == (3, 4)
    assert not isinstance(recipe.order, str | None)
    assert [sorted(order) for order in recipe.order] == [[*range(N)]] * 3


def test_clipping_by_value_is_read_from_the_gradients():
    net = cnn().double()
    optimizer = sgd(net)
    with simudy.record(net, optimizer) as recording:
        train(net, optimizer, shape=value_clipped)
    assert recording.evidence.recipe.optimizer == ClippedByValue(simudy.SGD(lr=0.1), max_value=0.03)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_rates_and_momenta_are_those_that_were_used(kind):
    net = cnn().double()
    optimizer = getattr(torch.optim, kind)(net.parameters(), **({"momentum": 0.9} if kind == "SGD"
                                                                else {}))  # fmt: skip
    scheduler = one_cycle(optimizer)
    with simudy.record(net, optimizer) as recording:
        train(net, optimizer, size=4, scheduler=scheduler)
    assert recording.faithful, recording
    moved = recording.evidence.recipe.schedule
    assert isinstance(moved, dict)
    assert set(moved) == {"lr", "momentum" if kind == "SGD" else "beta1"}
    assert isinstance(rates := moved["lr"], list) and len(set(rates)) == 9


def test_moments_from_before_belong_to_the_recipe():
    net = cnn().double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    train(net, optimizer, epochs=1)
    with simudy.record(net, optimizer) as recording:
        train(net, optimizer)
    assert recording.faithful, recording
    assert isinstance(recording.evidence.recipe.optimizer, Started)


def test_a_frozen_trunk_and_groups():
    net = cnn().double()
    net[0].bias.requires_grad_(False)
    groups = [{"params": [net[0].weight], "lr": 0.02}, {"params": net[3].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with simudy.record(net, optimizer) as recording:
        train(net, optimizer)
    assert recording.faithful, recording
    assert isinstance(recording.evidence.recipe.optimizer, Groups)
    assert "0.bias" not in recording.evidence.initial


def test_validation_in_between_is_not_part_of_the_run():
    net = cnn(norm=True).double()
    optimizer = sgd(net)

    def validate():
        net.eval()
        with torch.no_grad():
            nn.functional.cross_entropy(net(X.double() + 1), Y)
        net.train()

    with simudy.record(net, optimizer) as recording:
        train(net, optimizer, after_epoch=validate)
    assert recording.faithful and len(recording.images) == N, recording


def test_a_closure_as_lightning_has_it():
    net = cnn().double()
    optimizer = sgd(net)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(X.double()), Y)
        loss.backward()
        norm_clipped(net)
        return loss

    with simudy.record(net, optimizer) as recording:
        for _ in range(EPOCHS):
            optimizer.step(closure)
    assert recording.faithful, recording
    assert recording.evidence.recipe.optimizer.max_norm == 0.4


def test_binary_labels_and_real_targets():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)).double()
    optimizer = sgd(net)
    with simudy.record(net, optimizer) as recording:
        train(net, optimizer, loss=nn.BCEWithLogitsLoss(), labels=(Y % 2).double())
    assert recording.faithful and recording.evidence.classes == 2, recording
    with simudy.record(net, optimizer) as recording:
        train(net, optimizer, loss=nn.MSELoss(), labels=torch.linspace(0, 1, N).double())
    assert recording.faithful and recording.evidence.classes == 1, recording


def perturbed(net, optimizer):
    """In the third step something else has a hand in the weights."""
    train(net, optimizer, epochs=2)
    with torch.no_grad():
        net[0].weight.mul_(0.999)
    train(net, optimizer, epochs=2)


def test_it_says_in_which_step_the_run_departs():
    net = cnn().double()
    optimizer = sgd(net)
    with simudy.record(net, optimizer) as recording:
        perturbed(net, optimizer)
    assert not recording.faithful
    assert figures(recording).departs == 3 and "step 3" in str(recording)
    assert "\n" not in str(recording)


def test_where_few_weights_are_kept_the_step_is_bracketed(monkeypatch):
    size = sum(p.numel() * 8 for p in cnn().parameters())
    monkeypatch.setattr(seen_run, "TRAIL", 3 * size)
    net = cnn().double()
    optimizer = sgd(net)
    with simudy.record(net, optimizer) as recording:
        perturbed(net, optimizer)
        train(net, optimizer, epochs=6)
    verdict = figures(recording)
    assert verdict.after < 3 <= (verdict.departs or 0) <= verdict.after + 4
    assert f"after step {verdict.after}" in str(verdict)


def test_a_penalty_on_the_weights_is_no_part_of_the_loss():
    net = cnn()
    optimizer = sgd(net)
    with simudy.record(net, optimizer) as recording:
        for _ in range(EPOCHS):
            penalty = sum(p.square().sum() for p in net.parameters())
            (nn.functional.cross_entropy(net(X), Y) + 1e-3 * penalty).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert not recording.faithful and figures(recording).departs == 1


def noisy(net):
    for p in net.parameters():
        p.grad.add_(0.01)


def drop_out():
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))


def uneven(net, optimizer):
    train(net, optimizer, size=4, gather=3)
    train(net, optimizer, epochs=1)


def doubled(net, optimizer):
    train(net, optimizer, loss=lambda o, y: 2 * nn.functional.cross_entropy(o, y))


def another_loss(net, optimizer):
    train(net, optimizer)
    train(net, optimizer, loss=nn.CrossEntropyLoss(label_smoothing=0.2))


def another_decay(net, optimizer):
    train(net, optimizer)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    train(net, optimizer)


def other_modes(net, optimizer):
    train(net, optimizer)
    net.eval()
    train(net, optimizer)


def weights_after(net, optimizer):
    train(net, optimizer)
    with torch.no_grad():
        net[0].weight.zero_()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (lambda *both: train(*both, shape=noisy), "clip_grad_norm_"),
        (uneven, "gathers 1 batches"),
        (doubled, "divide by the number"),
        (another_loss, "the loss changes in step 4"),
        (another_decay, "weight_decay changes in step 4"),
        (other_modes, "in step 4, a layer goes"),
        (weights_after, "after the last step"),
    ],
)
def test_what_turns_up_under_way_costs_the_script_nothing(script, words):
    net = cnn()
    optimizer = sgd(net)
    with simudy.record(net, optimizer) as recording:
        script(net, optimizer)
    assert not recording.faithful
    with pytest.raises(SimudyError, match="not recorded"):
        _ = recording.evidence
    assert words in str(recording) and "\n" not in str(recording)


def by_hand(net, optimizer):
    net(X).square().mean().backward()
    optimizer.step()


def two_losses(net, optimizer):
    out = net(X)
    likeness = nn.functional.mse_loss(out.softmax(1), nn.functional.one_hot(Y, 3).float())
    (nn.functional.cross_entropy(out, Y) + likeness).backward()
    optimizer.step()


def autocast(net, optimizer):
    with torch.autocast("cpu", torch.bfloat16):
        train(net, optimizer)


def lbfgs(net):
    return torch.optim.LBFGS(net.parameters())


@pytest.mark.parametrize(
    ("make", "optimize", "script", "words"),
    [
        (drop_out, sgd, train, "drops units"),
        (cnn, sgd, autocast, "AMP"),
        (cnn, lbfgs, train, "no rule for LBFGS"),
        (lambda: cnn().to(torch.bfloat16), sgd, train, "bfloat16"),
        (cnn, lambda net: sgd(cnn()), train, "belong"),
        (cnn, sgd, by_hand, "no loss"),
        (cnn, sgd, two_losses, "two losses are added"),
    ],
)
def test_what_is_known_before_the_first_step_is_refused_there(make, optimize, script, words):
    net = make()
    optimizer = optimize(net)
    with pytest.raises(SimudyError, match=words), simudy.record(net, optimizer):
        script(net, optimizer)


def test_nothing_is_left_behind():
    net = cnn()
    optimizer = sgd(net)
    with simudy.record(net, optimizer) as recording:
        train(net, optimizer, epochs=1)
    assert not net._forward_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert not net[0].weight._post_accumulate_grad_hooks
    assert recording.faithful
    with simudy.record(net, optimizer) as empty:
        pass
    assert "no step" in str(empty)


def test_the_script_trains_as_without_it():
    ends = []
    for recorded in (False, True):
        net = cnn(norm=True)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        if recorded:
            with simudy.record(net, optimizer):
                train(net, optimizer, size=4, shuffle=True, shape=norm_clipped)
        else:
            train(net, optimizer, size=4, shuffle=True, shape=norm_clipped)
        ends.append(net.state_dict())
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_the_folder_reads_back_and_holds_no_image(tmp_path):
    net = cnn().double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    scheduler = one_cycle(optimizer)
    train(net, optimizer, epochs=1)
    mean, std = (0.5,), (0.25,)
    with simudy.record(net, optimizer, tmp_path, mean=mean, std=std, secret=True) as recording:
        train(net, optimizer, size=4, shuffle=True, scheduler=scheduler,
              loss=nn.CrossEntropyLoss(label_smoothing=0.1))  # fmt: skip
    read = Evidence.load(tmp_path / "evidence", cnn().double())
    moments = read.recipe.optimizer.states["0.weight"].mean
    assert torch.equal(moments, recording.evidence.recipe.optimizer.states["0.weight"].mean)
    assert read.recipe.schedule == recording.evidence.recipe.schedule
    assert read.recipe.order == recording.evidence.recipe.order
    secret = Secret.load(tmp_path / "secret")
    assert secret is not None
    torch.testing.assert_close(secret.normalised()[0].double(), recording.images, rtol=0, atol=1e-5)
    written = b"".join(p.read_bytes() for p in (tmp_path / "evidence").iterdir())
    assert all(image.numpy().tobytes() not in written for image in recording.images)


def test_images_beyond_the_pixel_range_are_no_secret(tmp_path):
    net = cnn()
    optimizer = sgd(net)
    recorder = simudy.record(net, optimizer, tmp_path, mean=(3.0,), secret=True)
    with pytest.raises(SimudyError, match="mean="), recorder:
        train(net, optimizer)
    assert (tmp_path / "evidence").exists()
    with pytest.raises(SimudyError, match="folder"), simudy.record(net, optimizer, secret=True):
        pass


REAL = torch.linspace(-1.3, 2.7, N)
SOFT = torch.rand(N, 3, generator=torch.Generator().manual_seed(4)).softmax(1)
SEVERAL = (torch.rand(N, 3, generator=torch.Generator().manual_seed(5)) > 0.4).float()


@pytest.mark.parametrize(
    ("loss", "labels", "outputs", "classes"),
    [
        (nn.MSELoss(), REAL[:, None], 1, 1),
        (nn.MSELoss(), torch.stack([REAL, REAL.flip(0)], 1), 2, 1),
        (nn.CrossEntropyLoss(), SOFT, 3, 3),
        (nn.BCEWithLogitsLoss(), SEVERAL, 3, 3),
        (nn.BCEWithLogitsLoss(), REAL[:, None].sigmoid(), 1, 1),
    ],
)
def test_targets_that_are_no_classes_are_kept_as_they_are(tmp_path, loss, labels, outputs, classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))
    optimizer = sgd(net)
    with simudy.record(net, optimizer, tmp_path, secret=True) as recording:
        train(net, optimizer, loss=loss, labels=labels)
    assert recording.faithful and recording.evidence.classes == classes, recording
    secret = Secret.load(tmp_path / "secret")
    assert secret is not None and secret.true_targets is not None
    assert torch.equal(secret.true_targets, labels) and not secret.labelled
    problem = simudy.Simudy(labels=secret.true_targets).problem(recording.evidence, seed=0)
    torch.testing.assert_close(problem.labels(), labels, rtol=0, atol=1e-6)
    learned = simudy.Simudy(labels="learned").problem(recording.evidence, seed=0)
    assert learned.labels().shape == labels.shape
    learned.restore(recording.images, labels, {})
    torch.testing.assert_close(learned.labels(), labels, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "labels", "outputs"),
    [
        (nn.CrossEntropyLoss(), Y, 3),
        (nn.BCEWithLogitsLoss(), (Y % 2).float()[:, None], 1),
        (nn.MSELoss(), nn.functional.one_hot(Y, 3).float(), 3),
    ],
)
def test_classes_are_known_however_the_loss_was_told(tmp_path, loss, labels, outputs):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))
    optimizer = sgd(net)
    with simudy.record(net, optimizer, tmp_path, secret=True) as recording:
        train(net, optimizer, loss=loss, labels=labels)
    assert recording.faithful, recording
    secret = Secret.load(tmp_path / "secret")
    assert secret is not None and secret.labelled
    assert secret.victim.labels.tolist() == (Y % 2 if outputs == 1 else Y).tolist()


def test_the_evidence_gives_the_images_away():
    """The recorded evidence goes straight into an attack."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 3))
    optimizer = sgd(net, lr=0.01)
    with simudy.record(net, optimizer) as recording:
        train(net, optimizer)
    found = simudy.reconstruct(
        recording.evidence, method=simudy.Simudy(noise=0.1), outer=simudy.Outer(iterations=60)
    )
    assert found.history[0]["distance"] > 10 * found.distance
    judged = simudy.score(found.images, recording.images, normalisation=None)
    assert judged.ssim_paper > 2 * judged.highest_floor
