"""Record a run of Lightning: ``Trainer(callbacks=[Recorder("audit")])``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

import simudy


class Recorder(Callback):
    """``recording`` holds the verdict and the evidence when training has ended.

    Args:
        folder: where the evidence goes.
        part: the attribute of the LightningModule that ``training_step`` calls with the images.
            Default: the LightningModule itself (``self(images)``).
        options: those of ``simudy.record``.
    """

    def __init__(self, folder: str | None = None, part: str | None = None, **options: Any) -> None:
        self.folder, self.part, self.options = folder, part, options
        self.recording: simudy.Recording | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        (optimizer,) = trainer.optimizers
        model = getattr(pl_module, self.part) if self.part else pl_module
        self._recorder = simudy.record(model, optimizer, self.folder, **self.options)
        self.recording = self._recorder.__enter__()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._recorder.__exit__(None, None, None)
        print(self.recording)
