"""A progress bar where somebody looks: in a terminal or a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Told = Callable[[int, float], None]


@contextmanager
def progress_bar(total: int, *, begun: int = 0, shown: bool | None = None) -> Iterator[Told]:
    """Yields ``told(iteration, distance)``, which moves the bar.

    Args:
        total: iterations.
        begun: those that were taken before.
        shown: whether there is a bar. Default: where standard error is a terminal, or in a
            notebook.
    """
    if not (sys.stderr.isatty() or in_notebook() if shown is None else shown):
        yield lambda iteration, distance: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=begun, unit="step") as bar:

        def told(iteration: int, distance: float) -> None:
            bar.update(iteration - bar.n)
            bar.set_postfix(distance=f"{distance:.2e}", refresh=False)

        yield told


def in_notebook() -> bool:
    """Whether this runs in a kernel of Jupyter's."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
