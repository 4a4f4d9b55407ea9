"""Jobs of an Optuna search that are stopped early, where their loss falls behind the others'.

Hydra's sweeper asks Optuna for trials, and hands a job no more than overrides. So a job opens the
study itself; its trial is the running one whose parameters are among these overrides.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Annotated, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from simudy.app.complaint import on_one_line
from simudy.app.settings.instantiate import build
from simudy.app.store.run_directory import PRUNED
from simudy.errors import SimudyError
from simudy.ranges import COUNT, NUMBER_OF, Range

if TYPE_CHECKING:
    from simudy.attack.search import Search

log = logging.getLogger(__name__)

FACTOR = Range(2, 10**6)
_STORED = "hydra.sweeper.storage=sqlite:///study.db hydra.sweeper.study_name=NAME"


class Pruned(Exception):
    """Raised between two steps: this search is not worth going on with."""


def median(
    n_startup_trials: Annotated[int, NUMBER_OF] = 5, n_warmup_steps: Annotated[int, NUMBER_OF] = 10
) -> Any:
    """Optuna's MedianPruner.

    Args:
        n_startup_trials: jobs that come to their end before any is stopped.
        n_warmup_steps: iterations of each before it may be stopped.
    """
    return _pruners().MedianPruner(n_startup_trials, n_warmup_steps)


def halving(
    min_resource: Annotated[int, COUNT] = 10, reduction_factor: Annotated[int, FACTOR] = 4
) -> Any:
    """Optuna's SuccessiveHalvingPruner. Reference: Li et al., A system for massively parallel
    hyperparameter tuning, MLSys 2020.

    Args:
        min_resource: iterations before the first cut.
        reduction_factor: one in so many goes on, to so many times the iterations.
    """
    return _pruners().SuccessiveHalvingPruner(min_resource, reduction_factor)


class Pruning:
    """Called after every step: tells the study the lowest objective so far, and raises ``Pruned``
    where the pruner gives the search up.

    Args:
        trial: of Optuna; or None for no pruning. Where it fails, a warning is said, and the search
            goes on without it.
    """

    def __init__(self, trial: Any = None) -> None:
        self.trial: Any = trial

    def __call__(self, search: Search) -> None:
        if self.trial is None or search.status != "running" or not is_told(search.iteration):
            return
        objective = float(search.best["objective"])
        if math.isfinite(objective) and self._falls_behind(search.iteration, objective):
            log.info("pruned at iteration %d: objective %.3e", search.iteration, objective)
            raise Pruned

    def _falls_behind(self, iteration: int, objective: float) -> bool:
        try:
            self.trial.report(objective, iteration)
            behind = self.trial.should_prune()
            if behind:
                self.trial.set_user_attr(PRUNED, iteration)
            return behind
        except Exception as error:  # of a database, or its server
            reason = on_one_line(f"{type(error).__name__}: {error}")
            log.warning("pruner: %s; the run goes on without it", reason)
            self.trial = None
            return False


def is_told(iteration: int) -> bool:
    """Whether the study is told of an iteration: of 1 to 9, 10, 20, … 90, 100, 200 and so on, which
    are the same for every job and stay few.

    Example:
        >>> [i for i in range(1, 41) if is_told(i)]
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30, 40]
    """
    return iteration % 10 ** (len(str(iteration)) - 1) == 0


def is_asked(cfg: DictConfig) -> bool:
    """Whether the settings name a pruner."""
    return bool(cfg.pruner) and cfg.pruner.get("_target_") is not None


def new_pruner(cfg: DictConfig, hydra: DictConfig) -> Any:
    """What the settings name, of ``optuna.pruners``; or None.

    Args:
        hydra: Hydra's own settings.

    Raises:
        SimudyError: it cannot be made, or there is no study for it.
    """
    if not is_asked(cfg):
        return None
    _require_study(cfg, hydra)
    return build(cfg.pruner, "pruner")


def _require_study(cfg: DictConfig, hydra: DictConfig) -> None:
    sweeper = hydra.sweeper
    if hydra.mode != RunMode.MULTIRUN or not str(sweeper._target_).endswith("OptunaSweeper"):
        raise SimudyError(
            f"a pruner stops jobs of a search by Optuna: add -m hydra/sweeper=optuna {_STORED}, "
            "or leave pruner out"
        )
    if not (sweeper.storage and sweeper.study_name):
        raise SimudyError(f"a pruner wants a study that is stored: add {_STORED}")
    if cfg.parallel:
        raise SimudyError(f"pruner and parallel={cfg.parallel} do not go together: leave one out")


def new_pruning(cfg: DictConfig) -> Pruning:
    """What the settings say, in a job of a sweep.

    Raises:
        SimudyError: there is no such pruner, no study, or no trial of this job in it.
    """
    if not is_asked(cfg):
        return Pruning()
    hydra: Any = HydraConfig.get()
    pruner = new_pruner(cfg, hydra)
    return Pruning(_trial(hydra.sweeper, set(hydra.overrides.task), pruner))


def _trial(sweeper: DictConfig, overrides: set[str], pruner: Any) -> Any:
    """The last that runs with these overrides: one that was killed is said to run for ever."""
    import optuna  # pyright: ignore[reportMissingImports]

    study = _study(sweeper, pruner)
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    own = [one for one in running if one.params and _words(one.params) <= overrides]
    if not own:
        raise SimudyError(
            f"no trial of study {sweeper.study_name} has this job's settings: search over some, as "
            "in 'outer.lr=interval(0.01,0.3)', or leave pruner out"
        )
    return optuna.Trial(study, max(own, key=lambda one: one.number)._trial_id)


def _study(sweeper: DictConfig, pruner: Any) -> Any:
    import optuna  # pyright: ignore[reportMissingImports]

    stored = sweeper.storage
    storage = instantiate(stored) if OmegaConf.is_config(stored) else stored
    idle = optuna.samplers.RandomSampler()  # the sweeper samples; this one has nothing to do
    try:
        return optuna.load_study(
            study_name=sweeper.study_name, storage=storage, sampler=idle, pruner=pruner
        )
    except Exception as error:  # of a database, or its server
        raise SimudyError(
            f"this job finds no study {sweeper.study_name} in {stored} ({type(error).__name__}): "
            "give a storage that every job reaches"
        ) from error


def _words(params: dict[str, Any]) -> set[str]:
    """As the sweeper writes them."""
    return {f"{key}={value}" for key, value in params.items()}


def _pruners() -> Any:
    try:
        import optuna  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SimudyError("pruner wants Optuna: pip install 'simudy[sweeps]'") from error
    return optuna.pruners
