"""Augmentation that is given: a plain torch loop that draws the same, derivatives, the evidence and
the command line.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from conftest import result
from torch import Tensor, nn

import simudy
from simudy import SGD, Evidence, Recipe, simulate
from simudy.dynamics.augment import Augment, Chain, Crop, Flip
from simudy.dynamics.gradient import Mixed, Reverse
from simudy.errors import SimudyError

N = 6
OWN = """
from dataclasses import dataclass
import torch
from torch import nn
import simudy

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Flatten(),
                         nn.Linear(8 * 64, 2))

@dataclass
class Roll(simudy.Augment):
    most: int = 2
    seed: int = 7

    def __call__(self, images, step):
        by = torch.randint(-self.most, self.most + 1, (), generator=self.draws(step))
        return images.roll(int(by), dims=3)

def plain(images, step):
    return images
"""


def by_hand(images: Tensor, step: int) -> Tensor:
    """What ``Chain([Flip(3), Crop(5, 2)])`` does, as a script would write it."""
    drawn = torch.rand(len(images), generator=torch.Generator().manual_seed(3 + step))
    flipped = torch.stack([x.flip(2) if p < 0.5 else x for x, p in zip(images, drawn, strict=True)])
    places = torch.randint(5, (len(images), 2), generator=torch.Generator().manual_seed(5 + step))
    padded = F.pad(flipped, (2, 2, 2, 2))
    cut = [one[:, y : y + 8, x : x + 8] for one, (y, x) in zip(padded, places, strict=True)]
    return torch.stack(cut)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 2)).double()


def data() -> tuple[Tensor, Tensor]:
    images = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    return images, torch.arange(N) % 2


RECIPE = Recipe(
    SGD(lr=0.1, momentum=0.9), epochs=2, batch_size=3, augment=Chain([Flip(3), Crop(5, padding=2)])
)


def trained() -> dict[str, Tensor]:
    """A plain torch loop."""
    module, (images, labels) = net(), data()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for step in range(4):
        rows = slice(0, 3) if step % 2 == 0 else slice(3, 6)
        optimizer.zero_grad()
        F.cross_entropy(module(by_hand(images[rows], step)), labels[rows]).backward()
        optimizer.step()
    return {k: v.detach() for k, v in module.named_parameters()}


def end(images: Tensor, gradient=Reverse()) -> dict[str, Tensor]:  # noqa: B008
    model = simudy.StatelessModel(net())
    batches, rules = RECIPE.collate(images, data()[1]), RECIPE.rules(N)
    return simulate(model.loss, model.params, batches, rules, gradient=gradient)


def test_the_run_is_that_of_a_plain_loop():
    ours, theirs = end(data()[0]), trained()
    assert all(torch.allclose(ours[k], theirs[k], rtol=0, atol=1e-12) for k in theirs)
    off = simulate(
        (model := simudy.StatelessModel(net())).loss,
        model.params,
        Recipe(RECIPE.optimizer, epochs=2, batch_size=3).collate(*data()),
        RECIPE.rules(N),
    )
    assert max(float((off[k] - theirs[k]).abs().max()) for k in theirs) > 1e-3


@pytest.mark.parametrize("gradient", [Reverse(), Mixed()])
def test_derivatives_are_those_of_finite_differences(gradient):
    images, _ = data()
    leaf = images.clone().requires_grad_()
    sum(p.square().sum() for p in end(leaf, gradient).values()).backward()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(2)).double()
    h = 1e-5

    def value(at: Tensor) -> float:
        return float(sum(p.square().sum() for p in end(at).values()))

    slope = (value(images + h * direction) - value(images - h * direction)) / (2 * h)
    assert float((leaf.grad * direction).sum()) == pytest.approx(slope, rel=1e-6)


def test_it_is_saved_with_the_evidence(tmp_path):
    model = simudy.StatelessModel(net())
    evidence = Evidence(model, model.params, trained(), RECIPE, (1, 8, 8), 2, N)
    evidence.save(tmp_path)
    assert Evidence.load(tmp_path, net()).recipe == RECIPE
    unsaved = Evidence(
        model, model.params, trained(), Recipe(augment=lambda x, _: x), (1, 8, 8), 2, N
    )
    with pytest.raises(SimudyError, match=r"simudy\.Augment"):
        unsaved.save(tmp_path / "again")


@dataclass
class Odd(Augment):
    kind: str

    def __call__(self, images: Tensor, step: int) -> Tensor:
        if self.kind == "draws":
            return images + torch.rand(())
        return images[1:] if self.kind == "drops" else images.detach().clone()


@pytest.mark.parametrize(
    ("kind", "words"),
    [("draws", "draws anew"), ("drops", "one for each"), ("cuts", "no derivative")],
)
def test_what_cannot_be_simulated_is_refused(kind, words):
    images, labels = data()
    with pytest.raises(SimudyError, match=words):
        Recipe(augment=Odd(kind)).collate(images.requires_grad_(), labels)


def test_of_augmented_images_the_first_layer_has_no_span():
    torch.manual_seed(0)
    images, labels = data()
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 2)).double()
    recipe = Recipe(SGD(lr=0.1), epochs=2, augment=Flip(3))
    model = simudy.StatelessModel(module)
    final = simulate(model.loss, model.params, recipe.collate(images, labels), recipe.rules(N))
    final = {k: v.detach() for k, v in final.items()}
    evidence = Evidence(model, model.params, final, recipe, (1, 8, 8), 2, N)
    with pytest.raises(SimudyError, match="augmented"):
        simudy.Simudy(images="span").problem(evidence, seed=0)
    problem = simudy.Simudy(labels=labels, start=images, noise=0.0).problem(evidence, seed=0)
    assert problem.objective(1.0)[1].item() < 1e-12


def test_on_the_command_line_one_of_her_own(cli, tmp_path):
    (tmp_path / "rolled.py").write_text(OWN)
    import sys

    sys.path.insert(0, str(tmp_path))
    from rolled import Net, Roll  # pyright: ignore[reportMissingImports]

    module, change = Net(), Roll(most=3)
    torch.save(module.state_dict(), tmp_path / "a.pt")
    images, labels = (part.float() if part.is_floating_point() else part for part in data())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        F.cross_entropy(module(change(images, step)), labels).backward()
        optimizer.step()
    torch.save(module.state_dict(), tmp_path / "b.pt")
    words = (
        *("evidence.initial=a.pt", "evidence.final=b.pt", "evidence.shape=[1,8,8]"),
        *("evidence.classes=2", "evidence.n=6", "model._target_=rolled.Net", "inner.lr=0.1"),
        *("recipe.epochs=3", "outer.iterations=2", "hydra.run.dir=run"),
    )
    hook = "recipe.augment._target_=rolled.Roll", "+recipe.augment.most=3"
    outcome = cli(*words, *hook, tiny=False)
    assert outcome.code == 0, outcome.err
    assert result(tmp_path / "run")["status"] == "finished"
    evidence = Evidence.load(tmp_path / "run/evidence", Net())
    recipe = evidence.recipe
    assert recipe.augment == change
    found = simulate(
        evidence.model.loss, evidence.initial, recipe.collate(images, labels), recipe.rules(N)
    )
    assert all(torch.allclose(found[k], v, rtol=0, atol=1e-6) for k, v in evidence.final.items())
    error = cli(*words, "recipe.augment._target_=rolled.plain", "hydra.run.dir=no", tiny=False)
    assert "derived from simudy.Augment" in error.error
