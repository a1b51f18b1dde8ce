"""Callbacks of both trainings: curves, the best epoch, checkpoints, patience, bars."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, Timer
from torch import Tensor
from tqdm.auto import tqdm

from crysxpp_mm.plots import plot_curves
from crysxpp_mm.training.checkpoints import CHECKPOINT, CURVES, PICTURE


def latest_losses(trainer: lightning.Trainer) -> dict[str, float]:
    """Losses of the epoch that just ended, by name."""
    return {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}


class CurveRecorder(Callback):
    """Keep every term of every epoch; with a folder, as ``curves.csv`` and ``curves.png``."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.rows = state_dict["rows"]

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Add the epoch."""
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        epoch: dict[str, float] = {"epoch": trainer.current_epoch}
        self.rows.append(epoch | latest_losses(trainer) | {"learning_rate": rate})
        if self.folder is not None:
            table = pd.DataFrame(self.rows)
            table.to_csv(self.folder / CURVES, index=False)
            plot_curves(table).savefig(self.folder / PICTURE, dpi=120)


class KeepBest(Callback):
    """Keep the best epoch by its validation loss; without validation, see ``otherwise``.

    Args:
        monitor: Name of the validation loss.
        first: The first epoch that may be the best.
        otherwise: Name of the loss to go by where nothing is validated; None keeps the latest
            epoch.
        keep: What to do with a module that is the best so far; None remembers its weights.
    """

    def __init__(
        self,
        monitor: str,
        *,
        first: int = 0,
        otherwise: str | None = None,
        keep: Callable[[lightning.LightningModule], None] | None = None,
    ) -> None:
        self.monitor = monitor
        self.first = first
        self.otherwise = otherwise
        self.keep = keep or self._remember
        self.best = float("inf")
        self.best_epoch = -1
        self.weights: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"best": self.best, "best_epoch": self.best_epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best = state_dict["best"]
        self.best_epoch = state_dict["best_epoch"]
        self.weights = state_dict["weights"]

    def _remember(self, module: lightning.LightningModule) -> None:
        network: Any = module.model
        self.weights = {
            name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()
        }

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Keep the epoch if it is the best so far; runs after its validation."""
        if trainer.current_epoch < self.first:
            return
        losses = latest_losses(trainer)
        value = losses.get(self.monitor, losses.get(self.otherwise or ""))
        if value is None or value < self.best:
            self.best = float("inf") if value is None else value
            self.best_epoch = trainer.current_epoch
            self.keep(pl_module)


class SaveCheckpoint(Checkpoint):
    """After every epoch, save all that is needed to go on; complete or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Save; Lightning calls checkpoint callbacks last, when the others know the epoch."""
        temporary = self.folder / f".{CHECKPOINT}"
        trainer.save_checkpoint(temporary, False)  # not the weights alone
        temporary.replace(self.folder / CHECKPOINT)


class Patience(EarlyStopping):
    """Early stopping that also ends a run which was killed between its last epoch and its end."""

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Stop before an epoch, if the checkpoint is of a run that had run out of patience."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class CallTimer(Timer):
    """End a run after the first epoch that this call finishes too late.

    The time of earlier calls, which a checkpoint tells of, does not count.

    Args:
        minutes: How long this call may take.
    """

    def __init__(self, minutes: float) -> None:
        super().__init__(timedelta(minutes=minutes), interval="epoch", verbose=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start the clock anew."""

    def on_fit_start(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        """Let every call finish an epoch."""


class EpochBar(Callback):
    """A progress bar over the epochs, with the losses."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: Any = None

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Open the bar, at the epoch that a resumed run has reached."""
        self.bar = tqdm(
            desc=self.label,
            total=trainer.max_epochs,
            initial=trainer.current_epoch,
            unit="epoch",
            disable=not trainer.is_global_zero,
        )

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Move on by an epoch."""
        losses = {name: f"{value:.4f}" for name, value in latest_losses(trainer).items()}
        self.bar.set_postfix(losses, refresh=False)
        self.bar.update()

    def teardown(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Close the bar, however the training ended."""
        if self.bar is not None:
            self.bar.close()
