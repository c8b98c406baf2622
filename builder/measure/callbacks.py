"""Measure while a network trains: for any logger, for Lightning, for the Hugging Face Trainer.

Each library is imported when its function is called, and by nothing else.
"""

from __future__ import annotations

import importlib
from typing import Any

from builder.compare.measurement import Measurement
from builder.errors import UsageError
from builder.measure.own import measure_module


def log_summary(measured: Measurement, logger: Any, step: int) -> None:
    """Give a summary to whatever logs numbers.

    Args:
        measured: from `measure`.
        logger: has `add_scalar(name, value, step)` (TensorBoard), `log(dict, step=step)` (Weights &
            Biases, a run of its kind) or `log_metrics(dict, step)` (Lightning's loggers, MLflow).
        step: what the numbers belong to: an epoch or a step.

    Raises:
        UsageError: it has none of the three.
    """
    numbers = measured.summary
    if hasattr(logger, "add_scalar"):
        for name, value in numbers.items():
            logger.add_scalar(name, value, step)
    elif hasattr(logger, "log_metrics"):
        logger.log_metrics(numbers, step)
    elif hasattr(logger, "log"):
        logger.log(numbers, step=step)
    else:
        raise UsageError(
            f"{type(logger).__name__} has neither add_scalar nor log_metrics nor log.",
            hint="expected a TensorBoard SummaryWriter, a Lightning logger, or a run to log to.",
        )


def lightning_callback(*, every_n_epochs: int = 1, **options: Any) -> Any:
    """A Lightning callback that logs the summary at the end of training epochs, on rank zero.

    Args:
        every_n_epochs: how often.
        options: as for `measure` of a module, e.g. image_size=32.
    """
    try:
        lightning: Any = importlib.import_module("lightning.pytorch")
    except ImportError:
        lightning = importlib.import_module("pytorch_lightning")

    class FilterMetrics(lightning.Callback):  # type: ignore[misc]
        """Logs the summary of the module's filters."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.is_global_zero and trainer.current_epoch % every_n_epochs == 0:
                numbers = measure_module(pl_module, **options).summary
                for logger in trainer.loggers:
                    logger.log_metrics(numbers, trainer.global_step)

    return FilterMetrics()


def trainer_callback(trainer: Any, *, every_n_epochs: int = 1, **options: Any) -> Any:
    """A callback for `trainer.add_callback` that logs the summary at the end of epochs.

    It logs through the trainer, so that every integration it reports to gets the numbers.

    Args:
        trainer: a transformers.Trainer.
        every_n_epochs: how often.
        options: as for `measure` of a module; image_size is by default what the model's
            configuration says.
    """
    transformers: Any = importlib.import_module("transformers")

    class FilterMetrics(transformers.TrainerCallback):  # type: ignore[misc]
        """Logs the summary of the trainer's model."""

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero and round(state.epoch) % every_n_epochs == 0:
                model = trainer.model
                size = {"image_size": getattr(model.config, "image_size", None), **options}
                trainer.log(measure_module(model, **size).summary)

    return FilterMetrics()
