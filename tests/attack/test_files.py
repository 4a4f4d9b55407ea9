"""Files of weights as people keep them: found by fit, read for what they prove, or refused."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from simudy import SGD, Evidence, Recipe, SimudyError, StatelessModel
from simudy.attack.checkpoints.weights import load_weights, weights_of
from simudy.attack.evidence import evidence_from_weights
from simudy.attack.serial import from_plain, to_plain
from simudy.dynamics.model.criterion import PerSample

SHAPE, CLASSES = (1, 4, 4), 3
FACTS = {"shape": SHAPE, "classes": CLASSES}


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def with_norms():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


def run(module, *, steps=6, lr=0.1, still=()):
    """State dicts before and after a plain torch loop, batches of four."""
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.train()
    for name in still:
        module.get_submodule(name).eval()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=lr)
    images, labels = torch.randn(4, *SHAPE), torch.arange(4) % CLASSES
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
    return before, {k: v.clone() for k, v in module.state_dict().items()}


def audit(module, before, after, *, epochs=6, **options):
    options = {**FACTS, "n": 4, **options}
    return evidence_from_weights(
        module, before, after, recipe=Recipe(SGD(lr=0.1), epochs=epochs), **options
    )


# --- what is saved with the evidence


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]), reduction="sum"),
        nn.MSELoss(),
    ],
)
def test_a_saved_loss_is_the_loss(tmp_path, loss):
    evidence = audit(plain(), *run(plain()), loss=loss)
    evidence.save(tmp_path)
    read = Evidence.load(tmp_path, plain())
    batch = torch.randn(4, *SHAPE), torch.tensor([0, 1, 2, 1])
    ours, theirs = (e.model.loss(e.initial, batch) for e in (evidence, read))
    assert torch.equal(ours, theirs)
    assert ours != StatelessModel(evidence.model.module).loss(evidence.initial, batch)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("kind", "options", "targets"),
    [
        (nn.CrossEntropyLoss, {}, "class"),
        (nn.CrossEntropyLoss, {"label_smoothing": 0.2}, "class"),
        (nn.CrossEntropyLoss, {"weight": torch.tensor([1.0, 2.0, 5.0])}, "class"),
        (
            nn.CrossEntropyLoss,
            {"weight": torch.tensor([1.0, 2.0, 5.0]), "label_smoothing": 0.1},
            "class",
        ),
        (nn.CrossEntropyLoss, {"weight": torch.tensor([1.0, 2.0, 5.0])}, "soft"),
        (nn.NLLLoss, {"weight": torch.tensor([1.0, 2.0, 5.0])}, "class"),
        (nn.MultiMarginLoss, {"weight": torch.tensor([1.0, 2.0, 5.0])}, "class"),
        (nn.BCEWithLogitsLoss, {"pos_weight": torch.tensor([1.0, 2.0, 5.0])}, "soft"),
        (nn.MSELoss, {}, "soft"),
        (nn.SmoothL1Loss, {"beta": 0.3}, "soft"),
        (nn.HuberLoss, {"delta": 0.3}, "soft"),
    ],
)
def test_losses_of_torch_by_sample_have_torchs_mean(kind, options, targets, reduction):
    loss = kind(**options, reduction=reduction).double()
    outputs, rng = torch.randn(4, 3).double(), torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 1, 2])
    if targets == "soft":
        labels = torch.rand(4, 3, generator=rng).double().softmax(1)
    each = PerSample(loss)(outputs, labels)
    assert each.shape == (4,)
    torch.testing.assert_close(each.mean(), loss(outputs, labels), rtol=1e-12, atol=1e-12)


def test_classes_become_numbers_where_a_loss_compares_numbers():
    outputs, labels = torch.randn(4, 1), torch.tensor([0, 1, 1, 0])
    ours = PerSample(nn.BCEWithLogitsLoss())(outputs, labels).mean()
    torch.testing.assert_close(ours, nn.BCEWithLogitsLoss()(outputs[:, 0], labels.float()))
    outputs = torch.randn(4, 2)
    ours = PerSample(nn.MSELoss())(outputs, labels).mean()
    torch.testing.assert_close(ours, nn.MSELoss()(outputs, torch.eye(2)[labels]))
    with pytest.raises(SimudyError, match=r"set Evidence\(classes=…\)"):
        PerSample(nn.MSELoss())(outputs, torch.randn(4, 3))


@pytest.mark.parametrize(
    "target",
    ["os.system", "subprocess.Popen", "torch.load", "antigravity.Rule", "simudy.app.cli.main", 3],
)
def test_a_file_may_not_name_what_it_likes(tmp_path, target, capfd):
    audit(plain(), *run(plain())).save(tmp_path)
    facts = json.loads((tmp_path / "evidence.json").read_text())
    facts["criterion"] = {"_target_": target, "command": "echo ran"}
    (tmp_path / "evidence.json").write_text(json.dumps(facts))
    with pytest.raises(SimudyError, match=r"is no rule, loss or schedule"):
        Evidence.load(tmp_path, plain())
    assert "ran" not in capfd.readouterr().out


def test_plain_data_of_losses_and_groups():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]), label_smoothing=0.1)
    back = from_plain(to_plain(loss))
    assert back.weight is not None and loss.weight is not None
    assert torch.equal(back.weight, loss.weight) and back.label_smoothing == 0.1
    with pytest.raises(SimudyError, match=r"cannot write"):
        to_plain(lambda outputs, labels: 0)


# --- what the files prove


def test_norms_that_counted_batches_trained_in_train_mode():
    evidence = audit(with_norms(), *run(with_norms()))
    assert evidence.model.module[1].training and evidence.model.module[4].training
    assert "2 norms ('1', …) trained in train mode for 6 batches" in evidence.notes["findings"]
    with pytest.raises(SimudyError, match=r"set evidence_from_weights\(mode='train'\)"):
        audit(with_norms(), *run(with_norms()), mode="eval")
    with pytest.raises(SimudyError, match=r"counted 6 batches between the files, the recipe has 5"):
        audit(with_norms(), *run(with_norms()), epochs=5)


def test_a_run_in_train_mode_is_followed_where_the_files_prove_it(tmp_path):
    """Simulated on the true images the run lands on the published weights, also after a reload."""
    module = with_norms()
    torch.manual_seed(5)
    before, after = run(module)
    torch.manual_seed(5)
    images, labels = torch.randn(4, *SHAPE), torch.arange(4) % CLASSES
    evidence = audit(with_norms(), before, after)
    evidence.save(tmp_path)
    for held in (evidence, Evidence.load(tmp_path, with_norms())):
        assert landing(held, images, labels) < 1e-5


def landing(evidence, images, labels):
    """How far the simulated run on the true images ends from the published weights."""
    from simudy import simulate

    recipe = evidence.recipe
    with torch.no_grad():
        batches = recipe.collate(images, labels)
        end = simulate(evidence.model.loss, evidence.initial, batches, recipe.rules(len(images)))
    return max(float((end[k] - v).abs().max()) for k, v in evidence.final.items())


def test_norms_partly_frozen():
    torch.manual_seed(5)
    before, after = run(with_norms(), still=("1",))
    torch.manual_seed(5)
    with_norms()
    images, labels = torch.randn(4, *SHAPE), torch.arange(4) % CLASSES
    evidence = audit(with_norms(), before, after)
    assert [evidence.model.module[i].training for i in (1, 4)] == [False, True]
    assert "norm '1' rested in eval mode" in evidence.notes["findings"]
    assert landing(evidence, images, labels) < 1e-5
    with pytest.raises(SimudyError, match=r"set evidence_from_weights\(mode='eval'\)"):
        rested = {
            k: after[k] if "running" not in k and "num" not in k else before[k] for k in after
        }
        audit(with_norms(), before, rested, mode="train")


def test_what_did_not_move_is_frozen(tmp_path):
    module = with_norms()
    for name in ("0.weight", "0.bias"):
        module.get_parameter(name).requires_grad_(False)
    torch.manual_seed(5)
    before, after = run(module)
    torch.manual_seed(5)
    images, labels = torch.randn(4, *SHAPE), torch.arange(4) % CLASSES
    recipe = Recipe(SGD(lr=0.1, weight_decay=0.0), epochs=6)
    evidence = evidence_from_weights(with_norms(), before, after, recipe=recipe, n=4, **FACTS)
    # no gradient reaches the bias before a norm in train mode
    assert "3 parameters ('0.weight', …) did not move: frozen" in evidence.notes["findings"]
    evidence.save(tmp_path)
    for held in (evidence, Evidence.load(tmp_path, with_norms())):
        assert landing(held, images, labels) < 1e-5
        frozen = {k for k, p in held.model.module.named_parameters() if not p.requires_grad}
        assert frozen == {"0.weight", "0.bias", "3.bias"}


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast_back", [False, True])
def test_published_precision_is_read_off_the_values(kind, cast_back):
    before, after = run(plain())
    publish = lambda w: {k: v.to(kind).float() if cast_back else v.to(kind) for k, v in w.items()}  # noqa: E731
    evidence = audit(plain(), publish(before), publish(after))
    name = str(kind).removeprefix("torch.")
    assert evidence.precision == name
    assert f"the weights are rounded to {name}" in evidence.notes["findings"]
    assert evidence.initial["1.weight"].dtype == torch.float32
    assert audit(plain(), before, after).precision is None


def changed(weights, **new):
    return {**weights, **{k.replace("__", "."): v for k, v in new.items()}}


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ({"1__running_var": -torch.ones(4)}, "negative variance in '1.running_var'"),
        ({"1__running_mean": torch.full((4,), torch.nan)}, "NaN or infinity in '1.running_mean'"),
        ({"0__weight": torch.ones(4, 1, 3, 3, dtype=torch.int8)}, "'0.weight' holds int8"),
        ({"0__weight": torch.ones(4, 1, 3, 3, dtype=torch.bool)}, "'0.weight' holds bool"),
        ({"0__weight": torch.ones(4, 1, 3, 3, dtype=torch.complex64)}, "'0.weight' is complex"),
        ({"0__weight": torch.ones(4, 1, 3, 3).to_sparse()}, "'0.weight' is no plain tensor"),
        ({"0__weight": torch.ones(4, 1, 3, 3, device="meta")}, "'0.weight' is no plain tensor"),
        ({"0__extra": torch.ones(4)}, "hold '0.extra', which the model has not"),
        ({"1__running_mean": torch.ones(3)}, "'1.running_mean' has shape"),
    ],
)
def test_what_the_files_hold_is_not_bent_to_fit(new, words):
    before, after = run(with_norms())
    with pytest.raises(SimudyError, match=words):
        audit(with_norms(), changed(before, **new), changed(after, **new))


def test_missing_statistics_are_not_made_up():
    def without(weights):
        return {k: v for k, v in weights.items() if "running" not in k and "num" not in k}

    before, after = (without(w) for w in run(with_norms()))
    with pytest.raises(
        SimudyError, match=r"lack '1.running_mean'.*set evidence_from_weights\(mode='train'\)"
    ):
        audit(with_norms(), before, after)
    assert audit(with_norms(), before, after, mode="train").model.module[1].training


def test_a_buffer_that_moves_is_refused():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = plain()
            self.register_buffer("scale", torch.ones(()))

        def forward(self, x):
            return self.layers(x) * self.scale

    before, after = run(Counting())
    with pytest.raises(SimudyError, match=r"the buffer 'scale' differs between the files"):
        audit(Counting(), before, changed(after, scale=torch.tensor(2.0)))
    evidence = audit(
        Counting(),
        *({k: v for k, v in w.items() if k != "scale"} for w in (before, after)),
    )
    assert "buffer 'scale' not in the files: the model's own" in evidence.notes["findings"]


def test_dropout_without_a_word_is_refused():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, CLASSES))
    before, after = run(module)
    with pytest.raises(SimudyError, match=r"layer '1' .Dropout. drops units at random"):
        audit(module, before, after)
    assert audit(module, before, after, mode="eval").n == 4


# --- checkpoints as they come


def nested(weights, *path):
    for key in reversed(path):
        weights = {key: weights}
    return weights


def prefixed(weights, prefix):
    return {f"{prefix}{k}": v for k, v in weights.items()}


@pytest.mark.parametrize(
    ("wrap", "origin"),
    [
        (lambda w: w, ""),
        (lambda w: {"epoch": 3, "state_dict": w}, "taken from 'state_dict'"),
        (lambda w: {"net": w, "acc": 0.5}, "taken from 'net'"),
        (lambda w: nested(w, "run", "model_state"), "taken from 'run.model_state'"),
        (lambda w: prefixed(w, "module."), "prefix 'module.' removed"),
        (lambda w: prefixed(w, "module._orig_mod."), "prefix 'module._orig_mod.' removed"),
        (lambda w: prefixed(w, "any.thing."), "prefix 'any.thing.' removed"),
        (lambda w: {k.replace("1.", "1._orig_mod.module."): v for k, v in w.items()}, ""),
        (
            lambda w: {
                "state_dict": {**prefixed(w, "model."), "criterion.weight": torch.ones(3)},
                "pytorch-lightning_version": "2.5.0",
                "hyper_parameters": {"lr": 0.1},
            },
            "taken from 'state_dict', prefix 'model.' removed",
        ),
        (
            lambda w: {**prefixed(w, "module."), "n_averaged": torch.tensor(3)},
            "prefix 'module.' removed",
        ),
        (
            lambda w: {"model": w, "ema": {k: v + 1 for k, v in w.items()}},
            "taken from 'model', 'ema' would fit too: evidence_from_weights(part='ema')",
        ),
    ],
)
def test_weights_are_found_by_fit(tmp_path, wrap, origin):
    module = plain()
    torch.save(wrap(module.state_dict()), tmp_path / "a.pt")
    found = weights_of(plain(), load_weights(tmp_path / "a.pt"), what="the weights")
    assert found.origin == origin
    for name, tensor in module.state_dict().items():
        assert torch.equal(found.tensors[name], tensor)


def test_a_part_can_be_chosen():
    weights = plain().state_dict()
    loaded = {"model": weights, "ema": {k: v + 1 for k, v in weights.items()}}
    found = weights_of(plain(), loaded, what="the weights", part="ema")
    assert torch.equal(found.tensors["1.bias"], weights["1.bias"] + 1)
    with pytest.raises(SimudyError, match=r"no part 'emma': the file's parts are 'model', 'ema'"):
        weights_of(plain(), loaded, what="the weights", part="emma")


def test_misfits_show_both_sides_on_one_line():
    other = {"\x1b[31mbackbone.weight": torch.ones(2), "head.weight": torch.ones(2)}
    with pytest.raises(SimudyError) as refused:
        weights_of(plain(), other, what="the initial weights")
    words = str(refused.value)
    assert "'1.weight', '1.bias', '3.weight', …" in words and "head.weight" in words
    assert "\x1b" not in words and "\n" not in words


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(x.flatten(1)))


def test_tied_weights_stored_once(tmp_path):
    module = Tied()
    save_model(module, str(tmp_path / "a.safetensors"))
    assert len(load_weights(tmp_path / "a.safetensors")) == 2  # the alias from the metadata
    for loaded in ({"last.weight": module.last.weight.detach()}, dict(module.state_dict())):
        found = weights_of(Tied(), loaded, what="the weights")
        assert torch.equal(found.tensors["first.weight"], module.first.weight)
    apart = {"first.weight": torch.ones(16, 16), "last.weight": torch.zeros(16, 16)}
    with pytest.raises(SimudyError, match=r"which the model ties"):
        weights_of(Tied(), apart, what="the weights")


def test_a_hugging_face_folder_whole_or_in_shards(tmp_path):
    weights = {k: v.contiguous() for k, v in plain().state_dict().items()}
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    for folder in (whole, shards):
        folder.mkdir()
    save_file(weights, whole / "model.safetensors")
    names = list(weights)
    place = {k: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, k in enumerate(names)}
    for file in set(place.values()):
        save_file({k: weights[k] for k in names if place[k] == file}, shards / file)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    for folder in (whole, shards, shards / "model.safetensors.index.json"):
        assert load_weights(folder).keys() == weights.keys()
    with pytest.raises(SimudyError, match=r"it holds none of model.safetensors"):
        load_weights(tmp_path)


class Trainer:
    """Of a person's own: to unpickle it is to run it."""


def test_what_lies_beside_the_weights_does_no_harm(tmp_path):
    weights = plain().state_dict()
    beside = {
        "args": argparse.Namespace(lr=0.1, out="x"),
        "best": np.float64(0.7),
        "curve": np.arange(3.0),
        "step": np.int64(3),
    }
    torch.save({"model": weights, **beside}, tmp_path / "a.pt")
    assert load_weights(tmp_path / "a.pt")["model"].keys() == weights.keys()
    torch.save({"model": weights, "trainer": Trainer()}, tmp_path / "b.pt")
    with pytest.raises(SimudyError, match=r"it would run .*Trainer"):
        load_weights(tmp_path / "b.pt")


def test_files_that_hold_no_weights(tmp_path):
    (tmp_path / "b.pt").write_bytes(b"PK\x03\x04 not weights")
    torch.save([1, 2], tmp_path / "c.pt")
    with pytest.raises(SimudyError, match=r"cannot read"):
        load_weights(tmp_path / "b.pt")
    with pytest.raises(SimudyError, match=r"no weights at"):
        load_weights(tmp_path / "d.pt")
    with pytest.raises(SimudyError, match=r"no dict of tensors"):
        weights_of(plain(), load_weights(tmp_path / "c.pt"), what="the weights")


def test_a_run_that_goes_on_with_moments_is_saved_with_them(tmp_path):
    """Epoch k to k+1: the moments travel with the evidence, and to another device."""
    from simudy.dynamics.optim import from_torch

    module = plain()
    torch.manual_seed(5)
    images, labels = torch.randn(4, *SHAPE), torch.arange(4) % CLASSES
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)

    def go_on():
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images), labels).backward()
            optimizer.step()
        return {k: v.clone() for k, v in module.state_dict().items()}

    before, rule, after = go_on(), from_torch(optimizer, module), go_on()
    recipe = Recipe(rule, epochs=5)
    evidence = evidence_from_weights(plain(), before, after, recipe=recipe, n=4, **FACTS)
    evidence.save(tmp_path)
    for held in (evidence, Evidence.load(tmp_path, plain()), evidence.to("cpu")):
        assert landing(held, images, labels) < 1e-6
    (tmp_path / "moments.safetensors").unlink()
    with pytest.raises(SimudyError, match=r"moments beside the recipe are missing"):
        Evidence.load(tmp_path, plain())
