"""Record a run of Hugging Face's Trainer: ``Trainer(…, callbacks=[Recorder("audit")])``.

The model gives logits where it is called with images alone, and the loss where it gets labels too.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

import simudy


class Recorder(TrainerCallback):
    """``recording`` holds the verdict and the evidence when training has ended.

    Args:
        folder: where the evidence goes.
        options: those of ``simudy.record``.
    """

    def __init__(self, folder: str | None = None, **options: Any) -> None:
        self.folder, self.options = folder, options
        self.recording: simudy.Recording | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **held: Any) -> None:
        optimizer = getattr(
            held["optimizer"], "optimizer", held["optimizer"]
        )  # accelerate's inside
        self._recorder = simudy.record(held["model"], optimizer, self.folder, **self.options)
        self.recording = self._recorder.__enter__()

    def on_train_end(self, args: Any, state: Any, control: Any, **held: Any) -> None:
        self._recorder.__exit__(None, None, None)
        print(self.recording)
