"""Twelve training runs as people write them, in plain torch, and the command that audits each.

    cd examples/audits
    python foreign.py batchnorm            # trains, writes runs/batchnorm/, prints the command
    simudy evidence.initial=… …            # that command

Nothing here imports simudy. Each function trains on eight small pictures, saves what its script
would save, and returns the words that tell simudy about it. Beside the weights lie the pictures it
trained on, and others: the attack never sees them, the score does.
"""

from __future__ import annotations

import copy
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from skimage.data import astronaut, coffee
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

N, SIZE, EPOCHS, SEED = 8, 16, 6, 3
MEAN, STD = 0.5, 0.25
Words = list[str]


class Cnn(nn.Sequential):
    """Two convolutions and a head."""

    def __init__(self, outputs: int = 2, norm: bool = False) -> None:
        norms = [nn.BatchNorm2d(16) if norm else nn.Identity() for _ in range(2)]
        super().__init__(
            *(nn.Conv2d(1, 16, 3, padding=1), norms[0], nn.Tanh()),
            *(nn.Conv2d(16, 16, 3, stride=2, padding=1), norms[1], nn.Tanh()),
            *(nn.Flatten(), nn.Linear(16 * (SIZE // 2) ** 2, outputs)),
        )


class Mlp(nn.Sequential):
    """One wide hidden layer."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__(nn.Flatten(), nn.Linear(SIZE**2, 200), nn.ReLU(), nn.Linear(200, outputs))


def pieces(photograph: Callable[[], Any]) -> Tensor:
    """A photograph, an eighth as large and grey, cut into squares ``(k, 1, 16, 16)``."""
    grey = torch.as_tensor(photograph(), dtype=torch.float32).mean(2) / 255
    small = nn.functional.avg_pool2d(grey[None, None], 8)[0, 0]
    squares = small.unfold(0, SIZE, SIZE).unfold(1, SIZE, SIZE).reshape(-1, 1, SIZE, SIZE)
    return (squares - MEAN) / STD


def images() -> tuple[Tensor, Tensor]:
    """Eight pieces ``(8, 1, 16, 16)``, and which of two photographs they are of."""
    chosen = [pieces(photograph)[: N // 2] for photograph in (astronaut, coffee)]
    return torch.cat(chosen), torch.arange(N) // (N // 2)


def heldout() -> tuple[Tensor, Tensor]:
    """The other pieces, which no network saw."""
    chosen = [pieces(photograph)[N // 2 :] for photograph in (astronaut, coffee)]
    return torch.cat(chosen), torch.cat([torch.full([len(c)], i) for i, c in enumerate(chosen)])


def loop(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[tuple[Tensor, ...]],
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    accumulate: int = 1,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """The loop of every tutorial."""
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(loader):
            (loss(module(x), y) / accumulate).backward()
            if (i + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                after_step()
        if scheduler is not None:
            scheduler.step()


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def whole() -> list[tuple[Tensor, Tensor]]:
    """All in one batch."""
    return [images()]


def sgd(module: nn.Module, **options: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), **{"lr": 0.1, **options})  # type: ignore[arg-type]


def files(folder: Path, before: object, after: object) -> None:
    torch.save(before, folder / "before.pt")
    torch.save(after, folder / "after.pt")


def batchnorm(folder: Path) -> Words:
    """A CNN with BatchNorm in train mode, momentum, and StepLR."""
    module = Cnn(norm=True)
    before, optimizer = state(module), sgd(module, lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    loop(module, optimizer, whole(), scheduler=scheduler)
    files(folder, before, state(module))
    rates = ["recipe.scheduler._target_=torch.optim.lr_scheduler.StepLR"]
    rates += ["+recipe.scheduler.step_size=2", "+recipe.scheduler.gamma=0.5"]
    rule = ["inner.lr=0.05", "inner.momentum=0.9"]
    return ["model._target_=foreign.Cnn", "+model.norm=true", *rule, *rates]


def smoothing(folder: Path) -> Words:
    """Label smoothing, and a seeded, shuffling loader."""
    module = Mlp()
    before = state(module)
    generator = torch.Generator().manual_seed(SEED)
    loader = DataLoader(TensorDataset(*images()), 4, shuffle=True, generator=generator)
    loop(module, sgd(module), loader, loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    files(folder, before, state(module))
    order = ["recipe.order=torch", f"recipe.seed={SEED}", "recipe.batch_size=4"]
    loss = ["recipe.loss._target_=torch.nn.CrossEntropyLoss", "+recipe.loss.label_smoothing=0.1"]
    return ["model._target_=foreign.Mlp", *order, *loss]


def adamw(folder: Path) -> Words:
    """AdamW with a cosine schedule, both saved beside the weights: nothing to say of them."""
    module = Cnn()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)

    def checkpoint() -> dict[str, object]:
        held = {"model": module, "optimizer": optimizer, "scheduler": scheduler}
        return {name: copy.deepcopy(one.state_dict()) for name, one in held.items()}  # type: ignore

    before = checkpoint()
    loop(module, optimizer, whole(), scheduler=scheduler)
    files(folder, before, checkpoint())
    return ["model._target_=foreign.Cnn"]


def frozen(folder: Path) -> Words:
    """A frozen trunk under a new head."""
    module = Cnn()
    for layer in list(module)[:-1]:
        layer.requires_grad_(False)
    before = state(module)
    loop(module, sgd(module), whole())
    files(folder, before, state(module))
    return ["model._target_=foreign.Cnn"]


def lightning(folder: Path) -> Words:
    """Files of the shape that Lightning writes."""
    module = Mlp()

    def checkpoint(epoch: int) -> dict[str, object]:
        named = {f"model.{k}": v for k, v in state(module).items()}
        return {
            "epoch": epoch,
            "global_step": epoch,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {**named, "criterion.weight": torch.ones(2)},
            "hyper_parameters": {"lr": 0.1},
        }

    before = checkpoint(0)
    loop(module, sgd(module), whole())
    files(folder, before, checkpoint(EPOCHS))
    return ["model._target_=foreign.Mlp"]


def wrapped(folder: Path) -> Words:
    """Names as DataParallel around torch.compile leaves them."""
    module = Mlp()

    def named() -> dict[str, Tensor]:
        return {f"module._orig_mod.{k}": v for k, v in state(module).items()}

    before = named()
    loop(module, sgd(module), whole())
    files(folder, before, named())
    return ["model._target_=foreign.Mlp"]


def ema(folder: Path) -> Words:
    """The running mean of the weights is published, beside the last ones."""
    module = Mlp()
    before, mean = state(module), AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    loop(module, sgd(module), whole(), after_step=lambda: mean.update_parameters(module))
    files(folder, {"model": before}, {"model": state(module), "ema": state(mean)})
    rule = "+inner.rule={_target_: simudy.SGD, lr: 0.1}"
    average = ["inner._target_=simudy.dynamics.optim.Averaged", "+inner.decay=0.9", rule]
    return ["model._target_=foreign.Mlp", "evidence.part=ema", *average]


def rounded(folder: Path) -> Words:
    """Published in bfloat16."""
    module = Mlp()
    before = state(module)
    loop(module, sgd(module), whole())
    halves = [{k: v.bfloat16() for k, v in w.items()} for w in (before, state(module))]
    files(folder, *halves)
    return ["model._target_=foreign.Mlp"]


def shards(folder: Path) -> Words:
    """A Hugging Face folder before, one in shards after."""
    module = Mlp()
    (folder / "before").mkdir(exist_ok=True)
    (folder / "after").mkdir(exist_ok=True)
    save_file(state(module), folder / "before" / "model.safetensors")
    loop(module, sgd(module), whole())
    place = {}
    for i, (name, tensor) in enumerate(state(module).items()):
        place[name] = f"model-{i + 1:05}-of-00004.safetensors"
        save_file({name: tensor}, folder / "after" / place[name])
    index = json.dumps({"metadata": {}, "weight_map": place})
    (folder / "after" / "model.safetensors.index.json").write_text(index)
    return ["model._target_=foreign.Mlp"]


def accumulation(folder: Path) -> Words:
    """Batches of two, a step every four."""
    module = Cnn()
    before = state(module)
    loader = DataLoader(TensorDataset(*images()), 2)
    loop(module, sgd(module), loader, accumulate=4)
    files(folder, before, state(module))
    prior = ["dummy.noise=0.1", "prior.tv=0.001", "prior.box=0.1"]
    return [
        "model._target_=foreign.Cnn",
        "recipe.batch_size=2",
        "recipe.accumulate=4",
        *prior,
    ]


def targets() -> Tensor:
    """A real number for each: its mean brightness, standardised."""
    mean = images()[0].mean((1, 2, 3))
    return (mean - mean.mean()) / mean.std()


def regression(folder: Path) -> Words:
    """One real output, squared error."""
    module = Mlp(outputs=1)
    before = state(module)
    batches = [(images()[0], targets()[:, None])]
    loop(module, sgd(module, lr=0.02), batches, loss=nn.functional.mse_loss)
    files(folder, before, state(module))
    loss = ["recipe.loss._target_=torch.nn.MSELoss", "evidence.classes=1", "dummy.labels=learned"]
    return ["model._target_=foreign.Mlp", "+model.outputs=1", "inner.lr=0.02", *loss]


def binary(folder: Path) -> Words:
    """One logit, binary cross-entropy."""
    module, (x, y) = Mlp(outputs=1), images()
    before, batches = state(module), [(x, y.float()[:, None])]
    loop(module, sgd(module), batches, loss=nn.functional.binary_cross_entropy_with_logits)
    files(folder, before, state(module))
    loss = "recipe.loss._target_=torch.nn.BCEWithLogitsLoss"
    return ["model._target_=foreign.Mlp", "+model.outputs=1", loss]


SITUATIONS = {
    f.__name__: f
    for f in (
        *(batchnorm, smoothing, adamw, frozen, lightning, wrapped),
        *(ema, rounded, shards, accumulation, regression, binary),
    )
}


SAVED = {"adamw"}  # what their files tell of the rule and the epochs, nobody needs to say


def audit(name: str, folder: Path) -> Words:
    """Train, save, and return the words of the command."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    told = SITUATIONS[name](folder)
    for kind, (pictures, labels) in {"truth": images(), "heldout": heldout()}.items():
        known = {} if name == "regression" else {"labels": labels}
        np.savez(folder / f"{kind}.npz", images=pictures * STD + MEAN, **known)
    return list(_command(name, folder, told))


def _command(name: str, folder: Path, told: Words) -> Iterator[str]:
    ends = ("before", "after") if name == "shards" else ("before.pt", "after.pt")
    yield from (f"evidence.initial={folder / ends[0]}", f"evidence.final={folder / ends[1]}")
    yield from (f"evidence.mean=[{MEAN}]", f"evidence.std=[{STD}]")
    yield from (f"evidence.shape=[1,{SIZE},{SIZE}]", f"evidence.n={N}")
    yield from (f"evidence.{kind}={folder / kind}.npz" for kind in ("truth", "heldout"))
    keys = {word.partition("=")[0] for word in told}
    yield from ["evidence.classes=2"] if "evidence.classes" not in keys else []
    if name not in SAVED:
        yield f"recipe.epochs={EPOCHS}"
        yield from ["inner.lr=0.1"] if not keys & {"inner.lr", "inner._target_"} else []
    yield from told


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in SITUATIONS:
        sys.exit(f"usage: python foreign.py {{{','.join(SITUATIONS)}}}")
    print("simudy", *map(shlex.quote, audit(sys.argv[1], Path("runs") / sys.argv[1])))
