"""A gradient shared out over processes (gloo, on the CPU) against one process, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from simudy import Factored, Mixed, Recompute, Reverse, Sharded, StatelessModel, Traced, simulate
from simudy.dynamics.adjoint import Direct
from simudy.dynamics.optim import SGD, Adam
from simudy.errors import SimudyError

ROWS = {"whole": [7, 7, 7], "mini": [4, 3, 4], "few": [3, 1, 3]}  # 4 processes: some have no row
MODES: dict[str, Any] = {
    "Direct Reverse": (Direct(), Reverse()),
    "Direct Mixed": (Direct(), Mixed()),
    "Direct Traced": (Direct(), Traced()),
    "Recompute Reverse": (Recompute(every=2), Reverse()),
    "Recompute Mixed": (Recompute(), Mixed()),
}
CASES = [
    ("Direct Reverse", "mini", "sgd", "mlp"),
    ("Direct Reverse", "few", "adam", "mlp"),
    ("Direct Mixed", "whole", "sgd", "conv"),
    ("Recompute Mixed", "mini", "sgd", "mlp"),
]
ALL = [(m, r, *k) for m in MODES for r in ROWS for k in (("sgd", "mlp"), ("adam", "conv"))]


@cache
def model(kind: str) -> StatelessModel:
    torch.manual_seed(0)
    body = (
        nn.Sequential(nn.Flatten(), nn.Linear(25, 6), nn.Tanh(), nn.Linear(6, 3))
        if kind == "mlp"
        else nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Tanh(), nn.Flatten(1))
    )
    return StatelessModel(body.double())


def inputs(rows: list[int]) -> list[Tensor]:
    """Images, soft labels and sample weights of each step, and a learning rate."""
    generator = torch.Generator().manual_seed(1)
    drawn = {"generator": generator, "dtype": torch.float64}
    found = [torch.tensor(0.3, dtype=torch.float64)]
    for n in rows:
        found += [torch.randn(n, 1, 5, 5, **drawn), torch.rand(n, **drawn)]
    return found


def run(case: tuple[str, ...], leaves: list[Tensor], wrap: Callable[[Any], Any]) -> Tensor:
    """One number that depends on every entry of the end."""
    mode, rows, rule, kind = case
    (adjoint, gradient), pure, (lr, *data) = MODES[mode], model(kind), leaves
    labels = [torch.arange(n) % 3 for n in ROWS[rows]]
    batches = list(zip(data[::2], labels, data[1::2], strict=True))
    optimizer = SGD(lr=lr, momentum=0.5) if rule == "sgd" else Adam(lr=lr)
    end = simulate(
        pure.loss, pure.params, batches, optimizer, adjoint=adjoint, gradient=wrap(gradient)
    )
    seen = ((p * torch.arange(p.numel()).view_as(p).cos()).sum() for p in end.values())
    return sum(seen, torch.zeros(())).sin()


def derivatives(case: tuple[str, ...], wrap: Callable[[Any], Any]) -> dict[str, list[Tensor]]:
    """Value, slopes, curvature along the slopes, and the slope again in forward mode."""
    leaves = [x.requires_grad_() for x in inputs(ROWS[case[1]])]
    value = run(case, leaves, wrap)
    slopes = torch.autograd.grad(value, leaves)
    found = {"value": [value.detach()], "slopes": list(slopes)}
    if case[1] == "mini" and "Traced" not in case[0]:
        again = torch.autograd.grad(run(case, leaves, wrap), leaves, create_graph=True)
        along = sum(((g * s).sum() for g, s in zip(again, slopes, strict=True)), torch.zeros(()))
        found["curvature"] = list(torch.autograd.grad(along, leaves))
        at, direction = tuple(x.detach() for x in leaves), tuple(slopes)
        of = lambda *x: run(case, list(x), wrap)  # noqa: E731
        found["forward"] = [torch.func.jvp(of, at, direction)[1]]
        many = [torch.stack([x, x + 0.1 * d]) for x, d in zip(at, direction, strict=True)]
        found["vmap"] = list(torch.func.vmap(torch.func.grad(of, argnums=(0, 1)))(*many))
    return found


def refusals() -> dict[str, str]:
    """What each of these losses is told."""
    norm = nn.Sequential(nn.Flatten(), nn.Linear(25, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 9.0]))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    losses = {
        "BatchNorm": StatelessModel(norm),
        "class weights": StatelessModel(linear, criterion=weighted),
        "sum": StatelessModel(linear, criterion=nn.CrossEntropyLoss(reduction="sum")),
    }
    found = {}
    for name, pure in losses.items():
        batch = [(torch.randn(6, 1, 5, 5, generator=torch.Generator()), torch.arange(6) % 3)]
        try:
            simulate(pure.loss, pure.params, batch, SGD(), gradient=Sharded())
        except SimudyError as error:
            found[name] = str(error)
    pure = StatelessModel(nn.Sequential(nn.Flatten(), nn.Linear(25, 3)))
    try:
        batch = [(torch.randn(2, 1, 5, 5, generator=torch.Generator()), torch.arange(2))]
        simulate(pure.loss, pure.params, batch, SGD(), gradient=Sharded(Factored(layers="all")))
    except SimudyError as error:
        found["factors"] = str(error)
    return found


def process(rank: int, world: int, folder: str, cases: list[tuple[str, ...]]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    found = {case: derivatives(case, Sharded) for case in cases}
    torch.save({"found": found, "refusals": refusals()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def processes(request, tmp_path_factory) -> list[dict[str, Any]]:
    """What each process found."""
    folder, world = tmp_path_factory.mktemp("processes"), request.param
    return start(world, folder, CASES)


def start(world: int, folder: Path, cases: list[tuple[str, ...]]) -> list[dict[str, Any]]:
    spawn(process, (world, str(folder), cases), nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def require_same(processes: list[dict[str, Any]], case: tuple[str, ...]) -> None:
    expected = derivatives(case, lambda gradient: gradient)
    for of_rank in processes:
        found = of_rank["found"][case]
        assert found.keys() == expected.keys()
        for name, tensors in expected.items():
            for mine, theirs in zip(found[name], tensors, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_many_processes_give_what_one_gives(case, processes):
    require_same(processes, case)


@pytest.mark.slow
def test_in_every_mode(tmp_path):
    processes = start(3, tmp_path, ALL)
    for case in ALL:
        require_same(processes, case)


def test_all_processes_hold_the_same_bits(processes):
    first, *others = (of_rank["found"] for of_rank in processes)
    for found in others:
        for case, named in first.items():
            for name, tensors in named.items():
                assert all(map(torch.equal, tensors, found[case][name])), (case, name)


def test_what_is_no_mean_over_rows_is_refused(processes):
    for of_rank in processes:
        told = of_rank["refusals"]
        assert all("mean over the rows" in told[k] for k in ("BatchNorm", "class weights", "sum"))
        assert "would factor '1.weight'" in told["factors"]


def test_without_processes_it_says_what_to_start():
    pure = model("mlp")
    with pytest.raises(SimudyError, match="torchrun"):
        batch = torch.zeros(2, 1, 5, 5).double(), torch.arange(2)
        simulate(pure.loss, pure.params, [batch], SGD(), gradient=Sharded())
