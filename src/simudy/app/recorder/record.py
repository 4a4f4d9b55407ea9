"""Record a training run where it happens: the evidence of it, and whether it can be simulated."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from simudy.app.recorder.replay import Verdict, replay
from simudy.app.recorder.seen_loss import SeenLoss
from simudy.app.recorder.seen_recipe import loss_of, recipe_of
from simudy.app.recorder.taps import Taps
from simudy.app.store.secret import UNLABELLED, Secret, classes_in
from simudy.attack.evidence import Evidence
from simudy.dynamics.model import StatelessModel
from simudy.dynamics.model.criterion import REAL
from simudy.errors import SimudyError
from simudy.files import user_path
from simudy.victim.data import ImageSet, Normalisation

log = logging.getLogger(__name__)


class Recording:
    """What came of it, complete when the ``with`` block has ended; printed, it is the verdict.

    Attributes:
        verdict: one line.
        faithful: the replay follows the run to the verdict's tolerance.
        images, labels: the secret ``(n, …)``, each image once, as the network saw it.
        replayed: the figures behind the verdict, or None.
    """

    def __init__(self) -> None:
        self.verdict = "the run is still being recorded"
        self.images, self.labels = torch.empty(0), torch.empty(0)
        self.replayed: Verdict | None = None
        self._evidence: Evidence | None = None

    @property
    def faithful(self) -> bool:
        """See above."""
        return self.replayed is not None and self.replayed.faithful

    @property
    def evidence(self) -> Evidence:
        """The public side of the run.

        Raises:
            SimudyError: no evidence can say what it did.
        """
        if self._evidence is None:
            raise SimudyError(self.verdict)
        return self._evidence

    def __str__(self) -> str:
        return self.verdict


@contextmanager
def record(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    folder: str | Path | None = None,
    *,
    classes: int | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    secret: bool = False,
) -> Iterator[Recording]:
    """Look on while a script trains, write what an attacker would hold, and replay it.

    Seen by hooks of PyTorch, which change nothing in the run: θ0 and θf, buffers and modes, the
    images of every batch, the loss of ``torch.nn`` with its options, accumulation, clipping by norm
    or by value, and the optimizer with its moments and its settings at every step, whatever moved
    them. Then ``simulate`` does the run again; only where it lands on the script's own weights is
    the recording faithful (``replay`` says to what tolerance, and why).

    Memory: the images, and up to 512 MB of weights along the way. Time: the run, again; and in
    float32 once more in float64, where roundings hide the answer.

    Args:
        model: the very module that the script calls. Not compiled or wrapped by DataParallel: give
            what is inside.
        optimizer: of ``torch.optim``, before this part of the run.
        folder: ``folder/evidence`` is written there, for ``simudy evidence.folder=…``. Default:
            nothing is written.
        classes: number of classes. Default: the network's outputs.
        mean, std: the normalisation of the images, by channel.
        secret: write ``folder/secret`` too, from which the attack is scored: for images whose
            pixels, ``images · std + mean``, lie in [0, 1]. They are never in the evidence.

    Raises:
        SimudyError: before the first step, where the model, the optimizer or the first batch is
            none that a simulation can follow. What turns up later is in the verdict.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with record(net, optimizer) as recording:
        ...     nn.functional.cross_entropy(net(torch.ones(1, 3)), torch.tensor([1])).backward()
        ...     optimizer.step()
        >>> recording.faithful, recording.evidence.recipe.epochs
        (True, 1)
    """
    if secret and folder is None:
        raise SimudyError("secret=True writes the images: say where to, folder=…")
    taps, recording = Taps(model, optimizer), Recording()
    with taps.attached():
        yield recording
    facts = {"mean": tuple(mean), "std": tuple(std)}
    try:
        _complete(recording, taps, classes=classes, **facts)
    except SimudyError as error:
        recording.verdict = f"not recorded: {error}"
    else:
        _write(recording, folder, secret=secret)
    log.log(logging.INFO if recording.faithful else logging.WARNING, recording.verdict)


def _complete(
    recording: Recording,
    taps: Taps,
    *,
    classes: int | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Fill in what the run came to."""
    if taps.trouble is not None:
        raise SimudyError(taps.trouble)
    if not taps.steps:
        raise SimudyError("the optimizer took no step: put the training loop into the with block")
    recording.images, recording.labels = taps.album.images, taps.album.labels
    recipe, loss = recipe_of(taps), loss_of(taps.steps)
    model = StatelessModel(taps.module, criterion=loss.criterion())
    trail = taps.trail.kept
    last = trail[len(taps.steps)]
    if not all(torch.equal(p.cpu(), last[name]) for name, p in taps.params.items()):
        raise SimudyError(
            "weights change after the last step: end the with block right after it, or record what "
            "the script publishes"
        )
    recording._evidence = Evidence(
        model,
        model.params,
        dict(taps.params),
        recipe,
        shape=tuple(recording.images.shape[1:]),
        classes=classes or _classes(loss, recording.labels),
        n=len(recording.images),
        mean=mean,
        std=std,
    )
    done = replay(model, recipe, recording.images, recording.labels, trail)
    recording.replayed, recording.verdict = done, str(done)
    recording.evidence.notes["findings"] = [f"recorded in {len(taps.steps)} steps; {done}"]


def _classes(loss: SeenLoss, labels: Tensor) -> int:
    """Of a classifier; 1 of a regression."""
    outputs = loss.outputs[1] if len(loss.outputs) > 1 else 1
    if issubclass(loss.kind, REAL) and classes_in(labels, max(outputs, 2)) is None:
        return 1
    if outputs > 1:
        return outputs
    return 2 if bool(((labels == 0) | (labels == 1)).all()) else 1


def _write(recording: Recording, where: str | Path | None, *, secret: bool) -> None:
    if where is None:
        return
    folder = user_path(where)
    recording.evidence.save(folder / "evidence")
    if secret:
        _secret_of(recording, recording.evidence).save(folder / "secret")


def _secret_of(recording: Recording, evidence: Evidence) -> Secret:
    """The images as pixels."""
    normalisation = Normalisation(evidence.mean, evidence.std)
    pixels = normalisation.denormalise(recording.images.float())
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dim() != 4 or min(low, 1 - high) < -1e-3:
        raise SimudyError(
            f"pixels are of shape {tuple(pixels.shape)}, from {low:.3g} to {high:.3g}: for "
            "secret=True give (n, c, h, w), and as mean= and std= the normalisation that brings "
            "them to [0, 1]"
        )
    said = recording.labels
    known = classes_in(said, evidence.classes)
    labels = torch.zeros(len(said), dtype=torch.int64) if known is None else known
    names = UNLABELLED if known is None else tuple(map(str, range(evidence.classes)))
    images = ImageSet(pixels.clamp(0, 1), labels, names)
    nothing = ImageSet(pixels[:0], labels[:0], names)
    return Secret(images, nothing, normalisation, targets=_unless_classes(said, known))


def _unless_classes(said: Tensor, known: Tensor | None) -> Tensor | None:
    """Targets that class numbers cannot stand for."""
    return None if known is not None and said.numel() == len(said) else said
