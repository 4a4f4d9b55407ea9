"""The shape of a configuration: every key, its type and its default. Free of torch, so that
``--help`` is instant.

Keys below are typed here, once. A node with a ``_target_`` (typed ``Any``) is typed by the class or
function it names, which is imported, and the node checked against it, when a run begins
(``check.py``). Settings themselves live in the YAML files under ``conf/``; nothing there can be
misspelt or of the wrong type without an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from simudy.app.settings.fingerprint import config_hash
from simudy.app.settings.unknown import refuse_unknown
from simudy.errors import SimudyError


@dataclass
class RecipeConfig:
    """How the victim was trained (see ``simudy.Recipe``)."""

    epochs: int = 20
    batch_size: int | None = None  # all images
    shuffle: bool = False
    schedule: Any = (
        None  # factors on the learning rate, one per step, or a node that makes a schedule
    )
    loss: Any = None  # of torch.nn, with a _target_; without one cross-entropy


@dataclass
class PretrainConfig:
    """A stage before the victim's own: a plain torch loop on other, public images."""

    epochs: int = 0  # 0: none
    batch_size: int = 128
    optimizer: Any = None
    new_head: bool = True  # the last linear layer starts afresh, as when fine-tuning


@dataclass
class VictimConfig:
    """The victim beyond its recipe."""

    mode: str | None = None  # eval, train; null: as the files prove, else eval
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)


@dataclass
class DummyConfig:
    """What the outer loop moves (see ``simudy.attack.dummy``)."""

    images: str = "pixels"
    decay: float = 1.5
    start: Any = None
    labels: Any = "balanced"
    noise: float = 0.5
    learn: list[str] = field(default_factory=list)


@dataclass
class PriorConfig:
    """Weights of what is believed of images before any evidence."""

    tv: float = 0.0
    box: float = 0.0


@dataclass
class OuterConfig:
    """The outer loop (see ``simudy.attack.search.Outer``)."""

    lr: float = 0.1
    iterations: int = 300
    tolerance: float = 0.0
    average: float = 0.0
    refine: int = 10
    lrs: Any = None  # step sizes by variable; a plain {name: number}
    optimizer: Any = None
    schedule: Any = None


@dataclass
class EvidenceConfig:
    """Weights that are already there, in place of a victim trained here."""

    initial: str | None = None
    final: str | None = None
    part: str | None = None  # where in the files the weights lie, where several parts fit
    folder: str | None = None  # one that an earlier run wrote
    shape: list[int] | None = None
    classes: int | None = None
    n: int | None = None  # unknown
    mean: list[float] = field(default_factory=lambda: [0.0])
    std: list[float] = field(default_factory=lambda: [1.0])


@dataclass
class IntervalsConfig:
    """How often a run reports and saves itself. None of these changes a result."""

    log: float = 10.0  # seconds
    checkpoint: float = 20.0  # seconds
    snapshots: int = 16  # images kept for the curve and the filmstrip, over the whole run


@dataclass
class Config:
    """A whole run."""

    task: str = "run"
    name: str = MISSING
    seed: int = 0
    device: str = "auto"
    backend: str = "native"
    precision: str = "ieee"
    dry_run: bool = False
    distance: str = "cosine"
    data: Any = None
    model: Any = None
    inner: Any = None
    attack: Any = None
    adjoint: Any = None
    gradient: Any = None
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    victim: VictimConfig = field(default_factory=VictimConfig)
    dummy: DummyConfig = field(default_factory=DummyConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    outer: OuterConfig = field(default_factory=OuterConfig)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    intervals: IntervalsConfig = field(default_factory=IntervalsConfig)
    cache: str = "~/.cache/simudy"
    memory: float | None = None


CHOICES = {
    "precision": ("ieee", "tf32"),
    "backend": ("native", "torchopt", "higher"),
    "victim.mode": (None, "eval", "train"),
    "dummy.images": ("pixels", "frequencies", "span"),
}
POSITIVE = ("recipe.epochs", "outer.iterations", "victim.pretrain.batch_size")


def register() -> None:
    """Make the schema and the resolvers known to Hydra."""
    ConfigStore.instance().store(name="schema", node=Config)
    # Hydra hands the whole configuration to the resolver, as it stands when a job's folder is
    # named.
    OmegaConf.register_new_resolver("config_hash", _hash_of_job, replace=True)


def _hash_of_job(*, _root_: DictConfig) -> str:
    return config_hash(resolve_targets(_root_, list(_root_.hydra.overrides.task)))


def resolve(cfg: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """A configuration ready to run: checked beyond its types, and cleared of options that are not
    its targets'.

    Raises:
        SimudyError: a value is not among its choices, or a mandatory one is missing.
    """
    cfg = resolve_targets(cfg, overrides)
    refuse_unknown(cfg, OmegaConf.structured(Config))
    for key, allowed in CHOICES.items():
        if (value := OmegaConf.select(cfg, key)) not in allowed:
            raise SimudyError(f"{key}={value}: choose from {', '.join(map(str, allowed))}")
    for key in POSITIVE:
        if (value := OmegaConf.select(cfg, key)) < 1:
            raise SimudyError(f"{key}={value}: give 1 or more")
    given = cfg.evidence.initial or cfg.evidence.folder  # then there are no images to load
    missing = sorted(
        key for key in OmegaConf.missing_keys(cfg) if not (given and key.startswith("data."))
    )
    if missing:
        raise SimudyError(f"{missing[0]} is not set: add {missing[0]}=… to the command")
    return cfg


def resolve_targets(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A node whose ``_target_`` the command line replaced keeps only what the command line says of
    it.
    """
    cfg, named = cfg.copy(), [override.split("=")[0].lstrip("+~") for override in overrides]
    for path in [key.removesuffix("._target_") for key in named if key.endswith("._target_")]:
        said = {key[len(path) + 1 :].split(".")[0] for key in named if key.startswith(f"{path}.")}
        node = OmegaConf.select(cfg, path)
        with open_dict(node):
            for key in [key for key in node if key not in said and key not in _COMMON]:
                node.pop(key)
    return cfg


_COMMON = ("inner", "recipe", "n")  # the attack's guesses, whatever its method
