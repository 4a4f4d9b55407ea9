"""Within torch.compile, and with modules that are spread over devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simudy import SGD, Direct, Mixed, Recompute, Reverse, StatelessModel, Traced, simulate
from simudy.errors import SimudyError


@pytest.mark.filterwarnings("ignore")  # dynamo's own
@pytest.mark.parametrize("mode", [(Direct(), Reverse()), (Recompute(every=2), Mixed())], ids=str)
def test_a_compiled_function_may_simulate(mode):
    model = StatelessModel(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    images, labels = torch.randn(5, 3, requires_grad=True), torch.arange(5) % 2

    def outcome(images: Tensor) -> Tensor:
        batches = [(images * 1.0, labels)] * 3
        end = simulate(
            model.loss, model.params, batches, SGD(lr=0.1), adjoint=mode[0], gradient=mode[1]
        )
        return torch.stack([p.square().sum() for p in end.values()]).sum()

    compiled = torch.compile(outcome, backend="eager")
    found, expected = (torch.autograd.grad(f(images), images)[0] for f in (compiled, outcome))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore")  # dynamo's own
@pytest.mark.parametrize("gradient", [Reverse(), Mixed(), Traced()], ids=str)
def test_a_compiled_loss_runs_as_it_was_written(gradient):
    """And so may a compiled function of everything that a run gives back."""
    model = StatelessModel(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    batch, compiled = (torch.randn(5, 3), torch.arange(5) % 2), torch.compile(model.loss)

    def outcome(lr: Tensor, loss: Any) -> Tensor:
        end, _, buffers, seen = simulate(
            loss, model.params, [batch] * 3, SGD(lr, 0.9), gradient=gradient, return_state=True,
            buffers=model.buffers, observe=lambda t, params, loss: loss, adjoint=Recompute(2),
        )  # fmt: skip
        return end["0.weight"].sum() + buffers["1.running_mean"].sum() + sum(seen)

    whole = torch.compile(outcome, backend="eager")
    lr = torch.tensor(0.1, requires_grad=True)
    expected = torch.autograd.grad(outcome(lr, model.loss), lr)
    for run, loss in ((outcome, compiled), (whole, model.loss)):
        torch.testing.assert_close(torch.autograd.grad(run(lr, loss), lr), expected)
    with pytest.raises(Exception, match="leave fullgraph=True out"):
        torch.compile(lambda lr: outcome(lr, model.loss), backend="eager", fullgraph=True)(lr)


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    torch.distributed.init_process_group(
        "gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/group"
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # torch's own, about sharding on a CPU
@pytest.mark.parametrize("how", ["compile", "ddp", "fsdp", "fully_shard"])
def test_modules_in_a_wrapper_are_refused_in_one_line(alone, how):
    module = nn.Sequential(nn.Linear(3, 4))
    if how == "compile":
        module, remedy = torch.compile(module), "_orig_mod"
    elif how == "ddp":
        module, remedy = nn.parallel.DistributedDataParallel(module), "which it holds as module"
    elif how == "fsdp":
        from torch.distributed.fsdp import FullyShardedDataParallel

        module = FullyShardedDataParallel(module, device_id=torch.device("cpu"))
        remedy = "before it is sharded"
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        remedy = "before it is sharded"
    with pytest.raises(SimudyError, match=remedy):
        StatelessModel(module)  # type: ignore[arg-type]
