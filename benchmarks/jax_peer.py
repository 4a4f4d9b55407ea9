"""The outer iteration of ``peers.py`` in JAX: optax's SGD folded by ``lax.scan``, compiled whole.

Images are (n, h, w, c) and kernels (h, w, in, out) here, which XLA runs fastest on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault(  # one thread, as the others; before the first use of jax
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import jax
import jax.numpy as jnp
import optax
import torch
from jax import lax
from torch import Tensor

jax.config.update("jax_enable_x64", True)
Arrays = dict[str, Any]
_prepared: dict[tuple[int, bool], tuple[Any, Callable, tuple]] = {}  # by the task, which is kept


def image_gradient(task: Any, lr: float, *, remat: bool) -> Tensor:
    """The gradient of the objective by the images, (n, c, h, w).

    Args:
        task: what the iteration starts from, a ``peers.Task``.
        lr: learning rate.
        remat: keep θ alone of every step (``jax.checkpoint``) and compute the rest again.
    """
    run, given = _iteration(task, lr, remat)
    found = torch.from_numpy(jax.device_get(run(*given)).copy())
    return found.permute(0, 3, 1, 2)


def peak_bytes(task: Any, lr: float, *, remat: bool) -> int:
    """What XLA sets aside for the compiled iteration, its results included."""
    run, _ = _iteration(task, lr, remat)
    size: Any = run.memory_analysis()  # type: ignore[attr-defined]
    return size.temp_size_in_bytes + size.output_size_in_bytes


def _iteration(task: Any, lr: float, remat: bool) -> tuple[Callable, tuple]:
    if (id(task), remat) not in _prepared:
        start, moved = _arrays(task.start), _arrays(task.moved)
        norms = _arrays(dict(task.module.named_buffers()))
        images = jnp.asarray(task.images.detach().permute(0, 2, 3, 1).contiguous().numpy())
        given = images, start, moved, norms, jnp.asarray(task.labels.numpy())
        compiled = jax.jit(jax.grad(_objective(task.steps, lr, remat))).lower(*given).compile()
        _prepared[id(task), remat] = task, compiled, given
    return _prepared[id(task), remat][1:]


def _objective(steps: int, lr: float, remat: bool) -> Callable:
    rule = optax.sgd(lr)

    def run(images: Any, start: Arrays, moved: Arrays, norms: Arrays, labels: Any) -> Any:
        def loss(params: Arrays) -> Any:
            logits = _logits(params, norms, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            updates, state = rule.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        fold = jax.checkpoint(step) if remat else step
        (end, _), _ = lax.scan(fold, (start, rule.init(start)), None, length=steps)
        apart = jax.tree.map(jnp.subtract, end, start)
        dot = lambda a, b: sum(jnp.vdot(a[name], b[name]) for name in a)  # noqa: E731
        return 1 - dot(apart, moved) / jnp.sqrt(dot(apart, apart) * dot(moved, moved))

    return run


def _arrays(tensors: dict[str, Tensor]) -> Arrays:
    turned = {k: p.permute(2, 3, 1, 0) if p.ndim == 4 else p for k, p in tensors.items()}
    return {
        k: jnp.asarray(p.detach().contiguous().numpy())
        for k, p in turned.items()
        if p.is_floating_point()
    }


def _logits(params: Arrays, norms: Arrays, images: Any) -> Any:
    if "stem.0.weight" not in params:  # an MLP, which reads (c, h, w)
        x = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        x = jax.nn.relu(x @ params["layers.1.weight"].T + params["layers.1.bias"])
        return jax.nn.relu(x @ params["layers.3.weight"].T) @ params["layers.5.weight"].T

    def block(x: Any, name: str, stride: int) -> Any:
        y = jax.nn.relu(_convolution(params, norms, x, f"{name}.body.0", stride))
        y = _convolution(params, norms, y, f"{name}.body.3", 1)
        if f"{name}.shortcut.0.weight" in params:
            x = _convolution(params, norms, x, f"{name}.shortcut.0", stride)
        return jax.nn.relu(x + y)

    x = jax.nn.relu(_convolution(params, norms, images, "stem.0", 1))
    for i in range(8):
        x = block(x, f"stages.{i}", 2 if i in (2, 4, 6) else 1)
    return x.mean((1, 2)) @ params["head.weight"].T + params["head.bias"]


def _convolution(params: Arrays, norms: Arrays, x: Any, name: str, stride: int) -> Any:
    """A convolution, and the norm in eval mode that comes next to it."""
    kernel, place = params[f"{name}.weight"], name.rsplit(".", 1)
    norm, side = f"{place[0]}.{int(place[1]) + 1}", kernel.shape[0] // 2
    y = lax.conv_general_dilated(
        x, kernel, (stride, stride), [(side, side)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    scale = params[f"{norm}.weight"] / jnp.sqrt(norms[f"{norm}.running_var"] + 1e-5)
    return (y - norms[f"{norm}.running_mean"]) * scale + params[f"{norm}.bias"]
