"""Launchers and sweepers that are installed apart, asked for before they are there."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from simudy.errors import SimudyError

# what is asked for: the package that brings it, and the extra that brings that
_EXTRAS = {
    "hydra/launcher=joblib": ("hydra_joblib_launcher", "sweeps"),
    "hydra/launcher=submitit_local": ("hydra_submitit_launcher", "sweeps"),
    "hydra/launcher=submitit_slurm": ("hydra_submitit_launcher", "sweeps"),
    "hydra/sweeper=optuna": ("hydra_optuna_sweeper", "sweeps"),
    "pruner=median": ("hydra_optuna_sweeper", "sweeps"),
    "pruner=halving": ("hydra_optuna_sweeper", "sweeps"),
    "hydra/launcher=ray": ("hydra_ray_launcher", "ray"),
}


def refuse_missing(argv: Sequence[str]) -> None:
    """Whether a command line asks for a launcher or a sweeper that is not installed.

    Raises:
        SimudyError: it does.
    """
    for word in argv:
        package, extra = _EXTRAS.get(word.lstrip("+"), (None, None))
        if package and not _is_there(f"hydra_plugins.{package}"):
            raise SimudyError(f"{word} is an install of its own: pip install 'simudy[{extra}]'")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # no plugin at all
        return False
