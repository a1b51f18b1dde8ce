"""Pretrain CrysAE on crystal graphs, without any label."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from crysxpp_mm.compute import ready_to_learn
from crysxpp_mm.data.targets import TargetTable
from crysxpp_mm.errors import DataError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.losses import reconstruction_loss, target_loss
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.settings import positive
from crysxpp_mm.training.batches import EpochOfBatches, PretrainBatch
from crysxpp_mm.training.callbacks import (
    CallTimer,
    CurveRecorder,
    KeepBest,
    Patience,
    SaveCheckpoint,
)
from crysxpp_mm.training.checkpoints import MODEL, check_run, write_record
from crysxpp_mm.training.config import PretrainConfig
from crysxpp_mm.training.loop import GraphData, LossModule, RunOptions, one_cycle, run_training
from crysxpp_mm.training.reconstruction import measure_reconstruction
from crysxpp_mm.training.start import start_from, weights_digest
from crysxpp_mm.training.targets import check_targets, fit_scale, measure_targets
from crysxpp_mm.version import __version__

MONITOR = "val_total"


class PretrainModule(LossModule):
    """An autoencoder and its loss, as Lightning trains them."""

    model: CrysAE

    def __init__(self, model: CrysAE, config: PretrainConfig, *, steps: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.steps = steps

    def _losses(self, batch: PretrainBatch) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the loss by name, and their weighted sum."""
        atoms = self.model.encoder(batch.graph)[-1]
        losses = reconstruction_loss(
            self.model.decoder(atoms, batch.pairs),
            batch.pairs,
            batch.features,
            batch.distances,
            hidden=batch.hidden,
            visible_weight=self.config.visible_weight,
        )
        terms, total = losses._asdict(), losses.total(self.config.loss_weights)
        if self.model.target_head is not None and batch.targets is not None:
            predicted = self.model.target_head(atoms, batch.graph)
            terms["targets"] = target_loss(predicted, batch.targets)
            total = total + self.config.target_weight * terms["targets"]
        return terms, total

    def _log(self, prefix: str, terms: dict[str, Tensor], total: Tensor, size: int) -> None:
        for name, value in {"total": total, **terms}.items():
            self.log(
                f"{prefix}_{name}",
                value.detach(),
                on_step=False,
                on_epoch=True,
                batch_size=size,
                prog_bar=name == "total" or prefix == "train",
            )

    def training_step(self, batch: PretrainBatch, batch_index: int) -> Tensor:
        """Compute the loss of a batch; one that is not finite stops the run."""
        terms, total = self._losses(batch)
        self.checked_loss(total, batch_index, **terms)
        self._log("train", terms, total, batch.graph.batch_size)
        return total

    def validation_step(self, batch: PretrainBatch, batch_index: int) -> None:
        """Log the losses of held-out crystals."""
        self._log("val", *self._losses(batch), batch.graph.batch_size)

    def configure_optimizers(self) -> Any:
        """AdamW, with a one-cycle rate if the settings say so."""
        config = self.config
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        if config.schedule == "constant":
            return optimizer
        return one_cycle(optimizer, total_steps=self.steps)


class CrystalData(GraphData):
    """Training and validation batches."""

    def __init__(
        self,
        graphs: CrystalGraphs,
        config: PretrainConfig,
        *,
        train: NDArray[np.int64],
        validation: NDArray[np.int64],
        num_workers: int = 0,
        targets: TargetTable | None = None,
    ) -> None:
        super().__init__()
        self.targets = targets
        self.graphs = graphs
        self.config = config
        self.train = train
        self.validation = validation
        self.num_workers = num_workers

    def epoch(self, epoch: int, *, shuffle: bool) -> EpochOfBatches:
        """The batches of an epoch."""
        indices = self.train if shuffle else self.validation
        return EpochOfBatches(
            self.graphs,
            indices,
            self.config,
            epoch=epoch,
            shuffle=shuffle,
            targets=self.targets,
        )

    def _loader(self, batches: EpochOfBatches) -> DataLoader[PretrainBatch]:
        return DataLoader(batches, batch_size=None, num_workers=self.num_workers)

    def train_dataloader(self) -> DataLoader[PretrainBatch]:
        """The batches of the current epoch; asked for anew every epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        return self._loader(self.epoch(epoch, shuffle=True))

    def val_dataloader(self) -> DataLoader[PretrainBatch] | list[Any]:
        """The validation batches, the same in every epoch."""
        if not len(self.validation):
            return []
        return self._loader(self.epoch(0, shuffle=False))


def split_crystals(
    n_crystals: int, config: PretrainConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and validation crystals, disjoint, drawn with the seed of ``config``."""
    order = np.random.default_rng([config.seed, 0]).permutation(n_crystals)
    n_validation = round(config.validation_fraction * n_crystals)
    return np.sort(order[n_validation:]), np.sort(order[:n_validation])


def _new_model(
    config: PretrainConfig,
    converter: CrystalGraphConverter | None,
    start: CrysAE | None,
    *,
    facts: dict[str, Any],
) -> CrysAE:
    """A model with the weights of the seed, or those of ``start``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = CrysAE(converter=converter, metadata=facts, **config.model_settings)
    if start is not None:
        start_from(model, start)
    return model


@ready_to_learn()
def pretrain(
    graphs: CrystalGraphs,
    config: PretrainConfig,
    out: str | os.PathLike[str],
    *,
    converter: CrystalGraphConverter | None = None,
    data_hash: str,
    targets: TargetTable | None = None,
    start: CrysAE | None = None,
    description: str = "",
    accelerator: str = "cpu",
    devices: int | str = 1,
    num_workers: int = 0,
    max_minutes: float | None = None,
    pbar: bool = True,
) -> CrysAE:
    """Pretrain a CrysAE, or go on with an interrupted run in the same folder.

    The folder receives ``model.json.gz`` (the weights of the best validation loss),
    ``last.ckpt`` (to resume from), ``curves.csv`` and ``curves.png`` (every term, every epoch)
    and ``run.json`` (settings, data and results).

    Args:
        graphs: The crystals.
        config: How to train.
        out: Folder of the run, made if absent.
        converter: The rule that ``graphs`` were built by; the default one if None.
        data_hash: sha256 of the data, kept with the weights.
        targets: The pretext targets of ``graphs``, where the settings name any.
        start: A pretrained model whose weights this one starts from; random ones if None.
        description: A line on the data, kept with the weights.
        accelerator: As Lightning's Trainer takes it.
        devices: As Lightning's Trainer takes it.
        num_workers: Processes that prepare batches.
        max_minutes: End after the first epoch that this call finishes later than so, with the best
            weights so far; the same call goes on from there.
        pbar: Whether to show a progress bar with the loss terms.

    Returns:
        The model with the best validation loss, in evaluation mode.

    Raises:
        DataError: fewer than two crystals are left to train on, or ``targets`` are missing or
            others than the settings name.
        SettingsError: the folder holds a run with other settings or other data, ``start`` is a
            model of other settings or another graph rule, or ``max_minutes`` is not positive.
        FloatingPointError: the loss is no longer finite.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; the same call goes on from the last epoch.
    """
    if max_minutes is not None:
        positive("max_minutes", max_minutes)
    folder = Path(out)
    train, validation = split_crystals(len(graphs), config)
    if len(train) < 2:
        raise DataError(f"pretraining needs at least two crystals, got {len(train)}.")
    check_targets(targets, graphs, config, data_hash=data_hash)
    run: dict[str, Any] = {
        "config": config.to_plain(),
        "data_hash": data_hash,
        "description": description,
        "n_train": len(train),
        "n_validation": len(validation),
        "version": __version__,
    }
    if start is not None:
        run["start"] = weights_digest(start)
    resume = check_run(folder, run)

    model = _new_model(config, converter, start, facts=run)
    if targets is not None and model.target_head is not None:
        targets = fit_scale(model.target_head, targets, graphs, train)
    data = CrystalData(
        graphs,
        config,
        train=train,
        validation=validation,
        num_workers=num_workers,
        targets=targets,
    )
    steps = sum(len(data.epoch(epoch, shuffle=True)) for epoch in range(config.max_epochs))
    module = PretrainModule(model, config, steps=steps)
    saver = KeepBest(
        MONITOR, otherwise="train_total", keep=lambda module: model.save(folder / MODEL)
    )
    callbacks: list[Callback] = [
        CurveRecorder(folder),
        saver,
        Patience(
            MONITOR if len(validation) else "train_total", patience=config.patience, strict=False
        ),
        SaveCheckpoint(folder),
    ]
    if max_minutes is not None:
        callbacks.append(CallTimer(max_minutes))
    if pbar:
        callbacks.append(TQDMProgressBar())
    started = time.monotonic()
    trainer = run_training(
        module,
        data,
        RunOptions(folder=folder, resume=resume, accelerator=accelerator, devices=devices),
        max_epochs=config.max_epochs,
        gradient_clip=config.gradient_clip,
        callbacks=callbacks,
        share_batches=False,
    )
    best = CrysAE.load(folder / MODEL)
    results: dict[str, Any] = {
        "epochs": trainer.current_epoch,
        "best_epoch": saver.best_epoch,
        "best_loss": saver.best,
        "seconds_of_last_start": round(time.monotonic() - started, 1),
    }
    if len(validation):
        results["reconstruction"] = measure_reconstruction(best, graphs.select(validation))
        if targets is not None:
            results["targets"] = measure_targets(
                best, graphs.select(validation), targets.select(graphs, validation)
            )
    best.metadata = {**run, "results": results}
    best.save(folder / MODEL)
    write_record(folder, {**run, "results": results})
    return best
