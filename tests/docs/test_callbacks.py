"""The callbacks of examples/callbacks/ in the hands of their frameworks, where these are
installed; and everywhere in those of stand-ins that call them as the frameworks document.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[2] / "examples" / "callbacks"
X, Y = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2


def recorder(name: str, monkeypatch, framework: str, base: str):
    """``Recorder`` of an example; its base class is made up where the framework is not there."""
    try:
        __import__(framework)
    except ImportError:
        parts = framework.split(".")
        for i in range(len(parts)):
            module = ModuleType(".".join(parts[: i + 1]))
            setattr(module, base, type(base, (), {}))
            monkeypatch.setitem(sys.modules, module.__name__, module)
    names: dict = {"__name__": name}
    exec(compile((FOLDER / f"{name}.py").read_text(), name, "exec", dont_inherit=True), names)
    return names["Recorder"]


class Net(nn.Module):
    """Logits of images alone, and the loss where there are labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 2))

    def forward(self, pixel_values, labels=None):
        logits = self.body(pixel_values)
        if labels is None:
            return logits
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def judged(callback) -> None:
    assert callback.recording is not None and callback.recording.faithful, callback.recording
    assert len(callback.recording.images) == 8


def test_lightning_as_documented(monkeypatch):
    """on_train_start, then the optimizer's step with a closure that does all, then on_train_end."""
    made = recorder("lightning_recorder", monkeypatch, "lightning.pytorch", "Callback")
    module, callback = nn.Module(), made(part="net")
    net = module.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    trainer = ModuleType("trainer")
    trainer.__dict__["optimizers"] = [optimizer]

    def closure(rows):
        loss = nn.functional.cross_entropy(net(X[rows]), Y[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        return loss

    callback.on_train_start(trainer, module)
    for _ in range(3):
        for rows in torch.randperm(8).split(4):
            optimizer.step(lambda rows=rows: closure(rows))
    callback.on_train_end(trainer, module)
    judged(callback)


def test_hugging_face_as_documented(monkeypatch):
    """on_train_begin, forward and backward, clipping, step, zero_grad, then on_train_end."""
    made = recorder("hf_recorder", monkeypatch, "transformers", "TrainerCallback")
    model, callback = Net(), made()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    accelerated = ModuleType("accelerated")
    accelerated.__dict__["optimizer"] = optimizer
    callback.on_train_begin(None, None, None, model=model, optimizer=accelerated)
    for _ in range(3):
        model.train()
        model(pixel_values=X, labels=Y)["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad()
    callback.on_train_end(None, None, None)
    judged(callback)


@pytest.mark.filterwarnings("ignore")
def test_lightning_itself(monkeypatch, tmp_path):
    pl = pytest.importorskip("lightning.pytorch")
    made = recorder("lightning_recorder", monkeypatch, "lightning.pytorch", "Callback")

    class Task(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 4, shuffle=True)
    callback = made(part="net")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", callbacks=[callback],
                         default_root_dir=tmp_path, gradient_clip_val=0.5, **quiet)  # fmt: skip
    trainer.fit(Task(), loader)
    judged(callback)


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_itself(monkeypatch, tmp_path):
    hf = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    made = recorder("hf_recorder", monkeypatch, "transformers", "TrainerCallback")
    data = [{"pixel_values": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    how = hf.TrainingArguments(str(tmp_path), num_train_epochs=3, per_device_train_batch_size=4,
                               report_to=[], save_strategy="no", use_cpu=True,
                               disable_tqdm=True)  # fmt: skip
    callback = made()
    hf.Trainer(model=Net(), args=how, train_dataset=data, callbacks=[callback]).train()
    judged(callback)
