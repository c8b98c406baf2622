"""Measuring while a network trains, with the real libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from builder.errors import UsageError
from builder.measure.callbacks import lightning_callback, log_summary, trainer_callback
from builder.measure.own import measure_module
from builder.sources.compat import import_torchvision

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "watch_training.py"


import_torchvision()  # beside a CPU-only torch, before the libraries import it


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


def test_any_logger_gets_the_numbers() -> None:
    measured = measure_module(Small())
    seen: dict[str, Any] = {}

    class Board:
        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen[name] = (value, step)

    class Run:
        def log(self, numbers: dict[str, float], step: int) -> None:
            seen.update({name: (value, step) for name, value in numbers.items()})

    class Metrics:
        def log_metrics(self, numbers: dict[str, float], step: int) -> None:
            seen.update({name: (value, step) for name, value in numbers.items()})

    for logger in (Board(), Run(), Metrics()):
        seen.clear()
        log_summary(measured, logger, 7)
        assert seen == {name: (value, 7) for name, value in measured.summary.items()}
    with pytest.raises(UsageError, match="object has neither add_scalar"):
        log_summary(measured, object(), 0)


@pytest.mark.slow
def test_lightning_logs_at_the_end_of_every_epoch(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Small()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    data = torch.utils.data.TensorDataset(torch.rand(8, 3, 16, 16), torch.arange(8) % 2)
    logger = CSVLogger(tmp_path)
    trainer = lightning.Trainer(
        max_epochs=2,
        logger=logger,
        callbacks=[lightning_callback(image_size=16)],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    module = Module()
    trainer.fit(module, torch.utils.data.DataLoader(data, 4))
    logger.save()
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert "filters/sparsity" in lines[0] and len(lines) == 1 + 2
    assert module.training


@pytest.mark.slow
def test_the_hugging_face_trainer_logs_at_the_end_of_every_epoch(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=2
    )
    model = transformers.ResNetForImageClassification(config)
    data = [{"pixel_values": torch.rand(3, 32, 32), "labels": i % 2} for i in range(8)]
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(tmp_path),
            num_train_epochs=2,
            per_device_train_batch_size=4,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=data,
    )
    trainer.add_callback(trainer_callback(trainer, image_size=32))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "filters/sparsity" in entry]
    assert [round(entry["epoch"]) for entry in logged] == [1, 2]


@pytest.mark.slow
def test_the_example_writes_events_that_tensorboard_reads(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    command = [sys.executable, str(EXAMPLE), "--epochs", "2", "--images", "256"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    events = reader.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [e.step for e in events.Scalars("filters/variance_entropy")] == [0, 1, 2]
