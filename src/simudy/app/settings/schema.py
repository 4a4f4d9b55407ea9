"""The shape of a configuration: every key, its type and its default. Free of torch, so that
``--help`` is instant.

Keys below are typed here, once. A node with a ``_target_`` (typed ``Any``) is typed by the class or
function it names, which is imported, and the node checked against it, when a run begins
(``check.py``). Settings themselves live in the YAML files under ``conf/``; nothing there can be
misspelt or of the wrong type without an error.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from simudy.app.settings.fingerprint import config_hash
from simudy.app.settings.nodes import resolve_targets
from simudy.app.settings.unknown import refuse_unknown
from simudy.errors import SimudyError
from simudy.plain import misfit
from simudy.ranges import (
    COUNT,
    DECAY,
    DUMMIES,
    FRACTION,
    NOT_NEGATIVE,
    NUMBER_OF,
    POSITIVE,
    SEED,
    SIDE,
    Length,
    Range,
)


def limited(default: Any, hint: Any) -> Any:
    """A field whose values are limited further than its type says, which is all OmegaConf knows."""
    return field(default=default, metadata={"hint": hint})


def number(default: float | None, limits: Range) -> Any:
    """A field that holds a number within ``limits``."""
    return field(default=default, metadata={"limits": limits})


NODE = {"hint": dict[str, Any] | None}  # a mapping with a _target_
FACTORS = dict[str, Any] | list[float] | float | None
EPOCHS, EPOCHS_OR_NONE, CLASSES = Range(1, 10**6), Range(0, 10**6), Range(1, 10**6)
LRS = Annotated[dict[str, Annotated[float, POSITIVE]] | None, "by variable"]
STEPS = list[Annotated[int, COUNT]] | None
SHAPE = Annotated[list[Annotated[int, SIDE]], Length(1)] | None
MEANS = Annotated[list[float], Length(1)]
# A step of one grey level is 1/255: below a thousandth of that a picture would have no contrast.
DEVIATIONS = Annotated[list[Annotated[float, Range(1e-6)]], Length(1)]


@dataclass
class RecipeConfig:
    """How the victim was trained (see ``simudy.Recipe``)."""

    epochs: int = number(20, EPOCHS)
    batch_size: int | None = number(None, COUNT)  # all images
    shuffle: bool = False
    schedule: Any = field(
        default=None,
        metadata={
            "hint": FACTORS
        },  # factors on the learning rate, one per step, or a node that makes a schedule
    )
    # of torch.optim.lr_scheduler, with a _target_
    scheduler: Any = field(default=None, metadata=NODE)
    scheduler_per: str = limited("epoch", Literal["epoch", "step"])  # when it is stepped
    order: Any = None  # torch, torch_global, or a file of indices; null: as shuffle says
    seed: int | None = number(None, SEED)  # of the order; null: the run's seed
    drop_last: bool = False
    accumulate: int = number(1, COUNT)  # batches per step of the optimizer
    # changes each batch, as it did in the run: a simudy.Augment, with a _target_
    augment: Any = field(default=None, metadata=NODE)
    loss: Any = field(
        default=None, metadata=NODE
    )  # of torch.nn, with a _target_; without one cross-entropy


@dataclass
class PretrainConfig:
    """A stage before the victim's own: a plain torch loop on other, public images."""

    epochs: int = number(0, EPOCHS_OR_NONE)  # passes over the public images; 0: no such stage
    batch_size: int = number(128, COUNT)  # images per step
    optimizer: Any = field(default=None, metadata=NODE)  # of torch.optim, by its _target_
    new_head: bool = True  # the last linear layer starts afresh, as when fine-tuning


@dataclass
class PublishConfig:
    """What is done to the final weights before anyone sees them (see ``victim.publish``)."""

    rounding: str | None = limited(None, Literal["bfloat16", "float16", "int8"] | None)
    noise: float = number(0.0, NOT_NEGATIVE)  # in root mean squares of the displacement
    prune: float = number(0.0, FRACTION)  # share set to zero, the smallest weights


@dataclass
class VictimConfig:
    """The victim beyond its recipe."""

    # null: as the files prove, else eval
    mode: str | None = limited(None, Literal["eval", "train"] | None)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    checkpoints: int = number(0, NUMBER_OF)  # weights kept from inside the run, evenly spaced
    publish: PublishConfig = field(default_factory=PublishConfig)


@dataclass
class DummyConfig:
    """What the outer loop moves (see ``simudy.attack.dummy``)."""

    images: str = limited("auto", Literal["auto", "pixels", "frequencies", "span", "tokens"])
    decay: float = number(1.5, NOT_NEGATIVE)
    start: Any = None
    labels: Any = "balanced"
    noise: float = number(0.5, NOT_NEGATIVE)
    learn: list[str] = field(default_factory=list)


@dataclass
class PriorConfig:
    """Weights of what is believed of images before any evidence."""

    tv: float = number(0.0, NOT_NEGATIVE)
    colour: float = number(0.0, NOT_NEGATIVE)
    box: float = number(0.0, NOT_NEGATIVE)
    denoiser: float = number(0.0, NOT_NEGATIVE)
    sigma: float = number(0.3, POSITIVE)  # of the noise that it takes out, in normalised units
    denoiser_steps: int = number(800, COUNT)
    term: Any = field(default=None, metadata=NODE)
    weight: float = number(1.0, NOT_NEGATIVE)  # of the term


@dataclass
class OuterConfig:
    """The outer loop (see ``simudy.attack.search.Outer``)."""

    lr: float = number(0.1, POSITIVE)
    iterations: int = number(300, COUNT)
    tolerance: float = number(0.0, NOT_NEGATIVE)
    average: float = number(0.0, DECAY)
    refine: int = number(10, NUMBER_OF)
    decode: bool = False
    lrs: Any = field(
        default=None, metadata={"hint": LRS}
    )  # step sizes by variable; a plain {name: number}
    optimizer: Any = field(default=None, metadata=NODE)
    schedule: Any = field(default=None, metadata=NODE)


@dataclass
class EvidenceConfig:
    """Weights that are already there, in place of a victim trained here."""

    initial: str | None = None
    final: str | None = None
    part: str | None = None  # where in the files the weights lie, where several parts fit
    checkpoints: list[str] = field(default_factory=list)  # files from inside the run, in its order
    # null: one after each epoch
    checkpoint_steps: list[int] | None = field(default=None, metadata={"hint": STEPS})
    resumed: list[str] = field(default_factory=list)  # what the run went on from, one a checkpoint
    updates: bool = False  # files after the first hold differences, as federated clients send them
    folder: str | None = None  # one that an earlier run wrote
    shape: list[int] | None = field(default=None, metadata={"hint": SHAPE})
    classes: int | None = number(None, CLASSES)
    n: int | None = number(None, DUMMIES)  # unknown
    mean: list[float] = field(default_factory=lambda: [0.0], metadata={"hint": MEANS})
    std: list[float] = field(default_factory=lambda: [1.0], metadata={"hint": DEVIATIONS})
    # for the scorer alone: images she trained on, and others, by path or with a _target_
    truth: Any = field(default=None, metadata={"hint": str | dict[str, Any] | None})
    heldout: Any = field(default=None, metadata={"hint": str | dict[str, Any] | None})


@dataclass
class ExposureConfig:
    """``task=exposure`` (see ``simudy.analysis.exposure``)."""

    prior: float = number(0.25, POSITIVE)  # standard deviation of a pixel before looking
    starts: int = number(2, COUNT)  # random starts an image
    steps: int = number(16, COUNT)  # products from each
    smooth: float = number(0.03, NOT_NEGATIVE)  # σ of the ReLUs; 0: as they are
    noise: float = number(0.0, NOT_NEGATIVE)  # standard deviation added to the published weights
    images: int | None = number(None, COUNT)  # the first so many; null: all


@dataclass
class MembershipConfig:
    """Who is asked about by ``task=membership``, and against whom."""

    candidates: Any = field(default=None, metadata={"hint": str | dict[str, Any] | None})
    reference: Any = field(default=None, metadata={"hint": str | dict[str, Any] | None})
    size: int | None = number(None, SIDE)  # pictures of a folder are cropped and resized to it


@dataclass
class IntervalsConfig:
    """How often a run reports and saves itself. None of these changes a result."""

    log: float = number(10.0, NOT_NEGATIVE)  # seconds
    checkpoint: float = number(20.0, NOT_NEGATIVE)  # seconds
    snapshots: int = number(
        16, NUMBER_OF
    )  # images kept for the curve and the filmstrip, over the whole run


@dataclass
class VerdictConfig:
    """Which searches confirm each other (see ``simudy.attack.agreement``)."""

    runs: list[str] = field(default_factory=list)  # folders of other runs, or of a sweep
    false_rate: float = number(0.05, FRACTION)  # of unrelated pairs that pass for one image


@dataclass
class Config:
    """A whole run."""

    task: str = "run"
    name: str = MISSING
    seed: int = number(0, SEED)
    device: str = "auto"
    backend: str = limited("native", Literal["native", "torchopt", "higher"])
    precision: str = limited("ieee", Literal["ieee", "tf32", "bf16"])
    dry_run: bool = False
    parallel: str | None = limited(None, Literal["images", "steps"] | None)
    distance: Any = field(default="cosine", metadata={"hint": str | dict[str, Any]})
    data: Any = field(default=None, metadata=NODE)
    model: Any = field(default=None, metadata=NODE)
    inner: Any = field(default=None, metadata=NODE)
    attack: Any = field(default=None, metadata=NODE)
    adjoint: Any = field(default=None, metadata=NODE)
    gradient: Any = field(default=None, metadata=NODE)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    victim: VictimConfig = field(default_factory=VictimConfig)
    dummy: DummyConfig = field(default_factory=DummyConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    outer: OuterConfig = field(default_factory=OuterConfig)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    exposure: ExposureConfig = field(default_factory=ExposureConfig)
    membership: MembershipConfig = field(default_factory=MembershipConfig)
    intervals: IntervalsConfig = field(default_factory=IntervalsConfig)
    tracker: Any = field(default=None, metadata=NODE)
    pruner: Any = field(default=None, metadata=NODE)
    cache: str = "~/.cache/simudy"
    memory: float | None = number(None, POSITIVE)


def register() -> None:
    """Make the schema and the resolvers known to Hydra."""
    ConfigStore.instance().store(name="schema", node=Config)
    # Hydra hands the whole configuration to the resolver, as it stands when a job's folder is
    # named.
    OmegaConf.register_new_resolver("config_hash", _hash_of_job, replace=True)


def _hash_of_job(*, _root_: DictConfig) -> str:
    return config_hash(resolve_targets(_root_, list(_root_.hydra.overrides.task), _root_.hydra))


def resolve(
    cfg: DictConfig, overrides: Sequence[str] = (), hydra: DictConfig | None = None
) -> DictConfig:
    """A configuration ready to run: checked beyond its types, and cleared of options that are not
    its targets'.

    Args:
        overrides: of the command line.
        hydra: Hydra's own settings.

    Raises:
        SimudyError: a value is not among its choices, or a mandatory one is missing.
    """
    cfg = resolve_targets(cfg, overrides, hydra)
    refuse_unknown(cfg, OmegaConf.structured(Config))
    check_typed(cfg, Config)
    given = cfg.evidence.initial or cfg.evidence.folder  # then there are no images to load
    missing = sorted(
        key for key in OmegaConf.missing_keys(cfg) if not (given and key.startswith("data."))
    )
    if missing:
        raise SimudyError(f"{missing[0]} is not set: add {missing[0]}=… to the command")
    return cfg


def check_typed(cfg: DictConfig, schema: type, where: str = "") -> None:
    """Every setting that is typed here, against its type and its limits.

    Raises:
        SimudyError: one does not fit.
    """
    for known, hint in settings_of(schema).items():
        if known not in cfg:
            raise SimudyError(f"{where}{known} was taken away: leave ~{where}{known} out")
        if OmegaConf.is_missing(cfg, known):
            continue
        value = cfg[known]
        if dataclasses.is_dataclass(hint):
            check_typed(value, hint, f"{where}{known}.")  # type: ignore[arg-type]
            continue
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        if wrong := misfit(plain, hint, f"{where}{known}"):
            raise SimudyError(wrong)


def settings_of(schema: type) -> dict[str, Any]:
    """The settings that a class of this file holds, and what each may be."""
    types, found = typing.get_type_hints(schema), {}
    for known in dataclasses.fields(schema):
        hint = known.metadata.get("hint", types[known.name])
        limits = known.metadata.get("limits")
        found[known.name] = hint if limits is None else Annotated[hint, limits]
    return found
