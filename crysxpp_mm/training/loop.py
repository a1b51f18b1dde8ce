"""The one place that makes a Lightning Trainer, for pretraining and for labels alike."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback, ProgressBar
from torch import Tensor

from crysxpp_mm.compute import default_device, is_forked, no_cuda_in_fork
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.graph.backend import move_graph
from crysxpp_mm.training.checkpoints import CHECKPOINT, stopped_as_usual

_NOTICES = (
    ".*does not have many workers.*",  # batches are cheaper than sending them
    ".*smaller than the logging interval.*",
    ".*across ranks is zero.*",
    ".*GPU available but not used.*",
    ".*callbacks used to create the checkpoint need to be provided.*",  # one may be left out
    r".*isinstance\(treespec.*",
)
"""Lightning's advice that does not concern a user of this package."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run that do not change what is learned.

    Args:
        folder: Where checkpoints and curves go; nowhere if None.
        resume: Go on from the checkpoint in the folder.
        accelerator: As Lightning's Trainer takes it; ``"auto"`` for CUDA where it is available.
        devices: As Lightning's Trainer takes it.
    """

    folder: Path | None = None
    resume: bool = False
    accelerator: str | None = "cpu"
    devices: int | str = 1


class LossModule(lightning.LightningModule):
    """A model that learns by a loss, which has to stay finite."""

    model: torch.nn.Module

    def checked_loss(self, loss: Tensor, batch_index: int, **terms: Tensor) -> Tensor:
        """Return the loss, or stop the run.

        Raises:
            FloatingPointError: it is not finite; the message has the terms.
        """
        if not torch.isfinite(loss):
            parts = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
            raise FloatingPointError(
                f"the loss is not finite in epoch {self.current_epoch}, batch {batch_index}"
                f"{f' ({parts})' if parts else ''}; lower learning_rate."
            )
        return loss


class GraphData(lightning.LightningDataModule):
    """Batches that are named tuples with a graph."""

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move a batch; its graph becomes plain tensors where DGL does not know the device."""
        batch = batch._replace(graph=move_graph(batch.graph, device))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


def one_cycle(optimizer: torch.optim.Optimizer, *, total_steps: int) -> dict[str, Any]:
    """Give Lightning an optimizer whose groups go through one cycle, up to their own rates."""
    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def run_training(
    module: LossModule,
    data: GraphData,
    options: RunOptions,
    *,
    max_epochs: int,
    gradient_clip: float,
    callbacks: Sequence[Callback],
    share_batches: bool = True,
) -> lightning.Trainer:
    """Train a module, or go on with an interrupted run in the same folder.

    One process asked for is one process trained: an allocation of a batch system with several
    tasks, or variables named ``PL_TRAINER_...``, change nothing.

    Args:
        module: The module, changed in place.
        data: Its batches, asked for anew every epoch.
        options: Where and with which checkpoint to run.
        max_epochs: Epochs at most.
        gradient_clip: Largest norm of the gradient.
        callbacks: Lightning callbacks.
        share_batches: Let several devices share the batches of an epoch.

    Raises:
        SettingsError: torch cannot train in this forked child.
        FloatingPointError: the loss is no longer finite.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM.
    """
    accelerator = options.accelerator
    if accelerator is None or accelerator == "auto":
        accelerator = default_device()
    alone = options.devices in (1, "1")
    checkpoint = options.folder is not None and options.resume
    with (
        _quiet_lightning(),
        stopped_as_usual(),
        no_cuda_in_fork(),
        _fork_is_named(),
        torch.random.fork_rng(devices=[]),  # loaders draw a seed
    ):
        with _without_trainer_variables():
            trainer = lightning.Trainer(
                accelerator=accelerator,
                devices=options.devices,
                plugins=[LightningEnvironment()] if alone else None,
                max_epochs=max_epochs,
                gradient_clip_val=gradient_clip,
                callbacks=list(callbacks),
                logger=False,
                enable_checkpointing=options.folder is not None,
                enable_progress_bar=any(isinstance(one, ProgressBar) for one in callbacks),
                enable_model_summary=False,
                num_sanity_val_steps=0,
                reload_dataloaders_every_n_epochs=1,
                use_distributed_sampler=share_batches,
                default_root_dir=options.folder,
            )
        trainer.fit(
            module,
            datamodule=data,
            ckpt_path=str(options.folder / CHECKPOINT) if checkpoint and options.folder else None,
            weights_only=True,
        )
    return trainer


@contextmanager
def _without_trainer_variables() -> Iterator[None]:
    """Hide the variables by which Lightning lets the environment set a Trainer's arguments."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PL_TRAINER_")}
    with mock.patch.dict(os.environ, kept, clear=True):
        yield


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notices and its advice on loaders out of a user's session."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            for message in _NOTICES:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _fork_is_named() -> Iterator[None]:
    """Say what to do where torch cannot train because of what the parent process did."""
    try:
        yield
    except RuntimeError as error:
        if not is_forked() or "fork" not in str(error):
            raise
        raise SettingsError(
            "torch cannot train in a forked child of a process that has trained on a GPU; start "
            "the child with multiprocessing.get_context('spawn'), or set accelerator='cpu' in "
            "the parent."
        ) from error
