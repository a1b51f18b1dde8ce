"""Train a CrysXPP on labels."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.backend import Graph
from crysxpp_mm.graph.batch import atom_batches
from crysxpp_mm.models.crysxpp import CrysXPP, FeatureSelector
from crysxpp_mm.serialization import read_document, write_document
from crysxpp_mm.compute import (
    cpu_by_default,
    default_device,
    is_forked,
    no_cuda_in_fork,
    one_torch_thread,
)
from crysxpp_mm.training.checkpoints import (
    CHECKPOINT,
    MODEL,
    Patience,
    SaveCheckpoint,
    check_run,
    stopped_as_usual,
)
from crysxpp_mm.training.config import FineTuneConfig
from crysxpp_mm.training.curves import CURVES, CurveRecorder

Task = Literal["regression", "classification"]

MONITOR = "val_loss"
SETTLED = 0.7
"""Share of the epochs before those that may be the best.

While the rate is high the loss jumps about, and few validation crystals would choose a lucky
epoch. Measured on log10 K with 1,622 labels: a run that held its best early epoch had an error of
0.105 on unseen crystals, the same run at its end 0.091.
"""
CALIBRATION_ATOMS = 16384
"""Sites at most of the training crystals on which the readout measures its input."""


class FineTuneBatch(NamedTuple):
    """Crystals and what is known of them."""

    graph: Graph
    targets: Tensor  # (n_graphs, n_targets) standardized, NaN = unknown; (n_graphs,) classes


class LabelledBatches(Dataset[FineTuneBatch]):
    """The batches of one epoch; the same epoch gives the same batches in every run."""

    def __init__(
        self,
        model: CrysXPP,
        graphs: CrystalGraphs,
        targets: Tensor,
        batches: list[NDArray[np.int64]],
    ) -> None:
        self.model = model
        self.graphs = graphs
        self.targets = targets
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> FineTuneBatch:
        rows = self.batches[index]
        graph = self.model.make_graph(self.graphs.select(rows), device="cpu")
        return FineTuneBatch(graph, self.targets[torch.from_numpy(rows)])


def training_batches(
    rows: NDArray[np.int64], config: FineTuneConfig, *, epoch: int
) -> list[NDArray[np.int64]]:
    """The batches of an epoch, in an order that its number and the seed decide.

    Few rows are passed over several times, as ``FineTuneConfig.min_steps`` says.
    """
    size = min(config.batch_size, max(1, len(rows) // 4))
    per_pass = max(1, round(len(rows) / size))
    passes = max(1, -(-config.min_steps // (config.max_epochs * per_pass)))
    rng = np.random.default_rng([config.seed, 1, epoch])
    return [
        batch for _ in range(passes) for batch in np.array_split(rng.permutation(rows), per_pass)
    ]


class LabelledData(lightning.LightningDataModule):
    """Training and validation batches."""

    def __init__(
        self,
        model: CrysXPP,
        graphs: CrystalGraphs,
        targets: Tensor,
        config: FineTuneConfig,
        *,
        train: NDArray[np.int64],
        validation: NDArray[np.int64],
    ) -> None:
        super().__init__()
        self.model = model
        self.graphs = graphs
        self.targets = targets
        self.config = config
        self.train = train
        self.validation = validation

    def _loader(self, batches: list[NDArray[np.int64]]) -> DataLoader[FineTuneBatch]:
        data = LabelledBatches(self.model, self.graphs, self.targets, batches)
        return DataLoader(data, batch_size=None)

    def train_dataloader(self) -> DataLoader[FineTuneBatch]:
        """The batches of the current epoch; asked for anew every epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        return self._loader(training_batches(self.train, self.config, epoch=epoch))

    def val_dataloader(self) -> DataLoader[FineTuneBatch] | list[Any]:
        """The validation batches, the same in every epoch."""
        if not len(self.validation):
            return []
        blocks = atom_batches(self.graphs.n_atoms[self.validation], 4096)
        return self._loader([self.validation[block] for block in blocks])


class FineTuneModule(lightning.LightningModule):
    """What Lightning needs to know of a training on labels."""

    def __init__(
        self,
        model: CrysXPP,
        config: FineTuneConfig,
        *,
        task: Task,
        class_weights: Tensor | None = None,
        floors: Tensor | None = None,
        trained: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.task = task
        self.trained = trained
        self.register_buffer("class_weights", class_weights)
        self.register_buffer("floors", floors)

    def on_train_epoch_start(self) -> None:
        """Freeze or thaw everything before the readout; keep the statistics of a trained model."""
        config, encoder = self.config, self.model.encoder
        frozen = self.current_epoch < config.frozen_epochs
        fixed = frozen or config.encoder_rate == 0
        encoder.requires_grad_(not fixed)
        selected = False
        if encoder.element_channel and config.element_start > 0:
            selected = self.current_epoch >= config.element_start * config.max_epochs
            encoder.element_embedding.requires_grad_(selected and not fixed)
        if self.model.selector is not None:
            self.model.selector.requires_grad_(not (frozen or selected))
        encoder.train(not (fixed or self.trained))

    def _loss(self, batch: FineTuneBatch) -> tuple[Tensor, int]:
        """Loss of a batch and how many labels it is the mean of."""
        prediction = self.model(batch.graph)
        if self.task == "classification":
            weights = self.class_weights
            assert weights is None or isinstance(weights, Tensor)
            return functional.cross_entropy(prediction, batch.targets, weights), len(prediction)
        if self.floors is not None:
            assert isinstance(self.floors, Tensor)
            # Where the label is above the floor, a prediction below it keeps its gradient.
            floored = torch.maximum(prediction, self.floors)
            prediction = torch.where(batch.targets > self.floors, prediction, floored)
        known = ~torch.isnan(batch.targets)
        error = prediction[known] - batch.targets[known]
        terms = error.abs() if self.config.loss == "l1" else error.square()
        return terms.mean(), int(known.sum())

    def _log(self, name: str, loss: Tensor, size: int) -> None:
        self.log(name, loss.detach(), on_step=False, on_epoch=True, batch_size=size, sync_dist=True)

    def training_step(self, batch: FineTuneBatch, batch_index: int) -> Tensor:
        """Loss of a batch; a loss that is not finite stops the run."""
        loss, size = self._loss(batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is not finite in epoch {self.current_epoch}, batch {batch_index}; "
                "lower learning_rate."
            )
        self._log("train_loss", loss, size)
        return loss

    def validation_step(self, batch: FineTuneBatch, batch_index: int) -> None:
        """Log the loss of held-out crystals."""
        self._log(MONITOR, *self._loss(batch))

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle rate: the encoder with its own rate, the selector undecayed."""
        config, model = self.config, self.model
        groups: list[dict[str, Any]] = [
            {"params": list(model.readout.parameters()), "lr": config.learning_rate}
        ]
        if config.encoder_rate > 0:
            rate = config.learning_rate * config.encoder_rate
            groups.append({"params": list(model.encoder.parameters()), "lr": rate})
        if model.selector is not None and config.selector_rate > 0:
            groups.append(
                {
                    "params": list(model.selector.parameters()),
                    "lr": config.selector_rate,
                    "weight_decay": 0.0,
                }
            )
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in groups],
            total_steps=int(self.trainer.estimated_stepping_batches),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """A step of AdamW on the error, then the proximal step of the L1 term of Eq. 10."""
        optimizer.step(closure=optimizer_closure)
        selector, config = self.model.selector, self.config
        if selector is None or not selector.weight.requires_grad:
            return
        if config.selector_rate > 0 and config.sparsity > 0:
            group = optimizer.param_groups[-1]  # the selector's
            shrink_selector(selector, optimizer.state, group, config.sparsity)


@torch.no_grad()
def shrink_selector(
    selector: FeatureSelector, state: Any, group: dict[str, Any], sparsity: float
) -> None:
    """The proximal step of ``sparsity * |zeta|_1``, in the metric of Adam's step before it.

    Adam divides the gradient g of a weight by a running root mean square, v. The proximal step
    that belongs to it is the soft threshold ``zeta <- sign(zeta) max(|zeta| - t, 0)`` with
    ``t = rate * sparsity / sqrt(v^2 + sparsity^2)``: a weight rests at exactly zero where the
    error pulls on it with less than ``sparsity``, as Eq. 10 asks, and no step is longer than
    ``rate``.

    Args:
        selector: Its weight is changed in place.
        state: The optimizer's state.
        group: The optimizer's group of the selector.
        sparsity: Weight lambda_1 of the L1 norm.
    """
    weight = selector.weight
    squares = state[weight]["exp_avg_sq"] / (1 - group["betas"][1] ** state[weight]["step"])
    threshold = group["lr"] * sparsity / torch.sqrt(squares + sparsity**2)
    weight.copy_(weight.sign() * (weight.abs() - threshold).clamp(min=0))


class KeepBest(Callback):
    """Remember the weights of the best validation loss.

    Args:
        first: The first epoch that may be the best.
    """

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self.best = float("inf")
        self.best_epoch = -1
        self.weights: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"best": self.best, "best_epoch": self.best_epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best = state_dict["best"]
        self.best_epoch = state_dict["best_epoch"]
        self.weights = state_dict["weights"]

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Keep the weights if they are the best so far; without validation, the latest."""
        assert isinstance(pl_module, FineTuneModule)
        if trainer.current_epoch < self.first:
            return
        value = trainer.callback_metrics.get(MONITOR)
        if value is None or float(value) < self.best:
            self.best = float("inf") if value is None else float(value)
            self.best_epoch = trainer.current_epoch
            self.weights = {
                name: tensor.detach().cpu().clone()
                for name, tensor in pl_module.model.state_dict().items()
            }


class Curves(CurveRecorder):
    """The log of a training; in ``folder`` if there is one, else in memory."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__(folder or Path())
        self.folder = folder

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Add the epoch."""
        if self.folder is not None:
            super().on_train_epoch_end(trainer, pl_module)
            return
        row: dict[str, float] = {"epoch": trainer.current_epoch}
        row |= {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        row["learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        self.rows.append(row)


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
        losses = {
            name: f"{float(value):.4f}"
            for name, value in sorted(trainer.callback_metrics.items())
            if name in ("train_loss", MONITOR)
        }
        self.bar.set_postfix(losses, refresh=False)
        self.bar.update()

    def teardown(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Close the bar, however the training ended."""
        if self.bar is not None:
            self.bar.close()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notices and its advice on loaders out of a user's session."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
            warnings.filterwarnings("ignore", message=".*across ranks is zero.*")
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec.*")
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


@torch.no_grad()
def calibrate_readout(model: CrysXPP, graphs: CrystalGraphs) -> None:
    """Let the readout measure its input on crystals, as training will show it to them first.

    The batch norms use the statistics of these crystals and keep their own.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    model.train()
    model.readout.calibrate(model.readout_input(model.make_graph(graphs)))
    model.encoder.load_state_dict(before)
    assert all(norm.training for norm in norms)


@one_torch_thread()
@cpu_by_default()
def fine_tune(
    model: CrysXPP,
    graphs: CrystalGraphs,
    targets: NDArray[np.floating] | NDArray[np.integer],
    config: FineTuneConfig,
    *,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    task: Task = "regression",
    class_weights: NDArray[np.floating] | None = None,
    floors: NDArray[np.floating] | None = None,
    trained: bool = False,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    run_id: str = "",
    accelerator: str = "cpu",
    devices: int | str = 1,
    pbar: bool = True,
    label: str = "CrysXPP",
) -> pd.DataFrame:
    """Train ``model`` in place, or go on with an interrupted run in the same folder.

    With a folder it receives ``last.ckpt`` (to resume from), ``curves.csv``, ``curves.png`` and
    at the end ``model.json.gz``; a finished run is read back.

    Args:
        model: Left with the weights of the best validation loss, in evaluation mode, on the CPU.
        graphs: The crystals.
        targets: Standardized targets, shape ``(n_graphs, n_targets)``, NaN where unknown; for
            classification the classes from 0, shape ``(n_graphs,)``.
        config: How to train.
        train: Rows to learn from.
        validation: Rows that choose the best epoch; if empty, the last epoch is kept.
        task: What the targets are.
        class_weights: Weight of each class in the loss, shape ``(n_classes,)``.
        floors: Least standardized targets, shape ``(n_targets,)``, ``-inf`` where there is none: to
            predict less of a crystal that has the least is no error.
        trained: Whether the model has learned from labels before. Then the readout keeps the
            measure of its input and the batch norms keep their statistics.
        checkpoint_dir: Folder of the run, made if absent.
        run_id: What tells this run from others; a folder that holds another one is refused.
        accelerator: As Lightning's Trainer takes it; ``"auto"`` for CUDA where it is available.
        devices: As Lightning's Trainer takes it.
        pbar: Whether to show a progress bar.
        label: Text before the bar.

    Returns:
        One row an epoch: ``epoch``, ``learning_rate``, ``train_loss``, ``val_loss``, and ``kept``,
        whether it is the one whose weights the model has.

    Raises:
        DataError: there is nothing to learn from, or a row is in both sets.
        SettingsError: the folder holds another run, or is damaged; or torch cannot train in this
            forked child.
        FloatingPointError: the loss is no longer finite.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; with a folder, the same call goes on from
            the last epoch.
    """
    if not len(train):
        raise DataError("there are no crystals to learn from.")
    if len(np.intersect1d(train, validation)):
        raise DataError("a crystal is in the training and in the validation set.")
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    resume = folder is not None and check_run(folder, {"run_id": run_id})
    if folder is not None and (folder / MODEL).exists():
        return _read_back(model, folder)
    if not trained:
        sizes = graphs.n_atoms[train]
        order = np.random.default_rng([config.seed, 2]).permutation(len(train))
        first = atom_batches(sizes[order], CALIBRATION_ATOMS)[0]
        calibrate_readout(model, graphs.select(train[order[first]]))
    model.train()
    dtype = torch.long if task == "classification" else torch.float32
    labels = torch.as_tensor(targets, dtype=dtype)
    weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
    least = None if floors is None else torch.as_tensor(floors, dtype=dtype)
    module = FineTuneModule(
        model, config, task=task, class_weights=weights, floors=least, trained=trained
    )
    data = LabelledData(
        model,
        graphs,
        labels,
        config,
        train=train,
        validation=validation,
    )
    settled = 0 if config.patience is not None else int(SETTLED * config.max_epochs)
    curves, best = Curves(folder), KeepBest(settled)
    callbacks: list[Callback] = [curves, best]
    if len(validation) and config.patience is not None:
        callbacks.append(Patience(MONITOR, patience=config.patience, strict=False))
    if folder is not None:
        callbacks.append(SaveCheckpoint(folder))
    if pbar:
        callbacks.append(EpochBar(label))
    if accelerator == "auto":
        accelerator = default_device()
    with (
        _quiet_lightning(),
        stopped_as_usual(),
        no_cuda_in_fork(),
        _fork_is_named(),
        torch.random.fork_rng(devices=[]),  # loaders draw a seed
    ):
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=devices,
            max_epochs=config.max_epochs,
            gradient_clip_val=config.gradient_clip,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=folder is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=folder,
        )
        trainer.fit(
            module,
            datamodule=data,
            ckpt_path=str(folder / CHECKPOINT) if folder is not None and resume else None,
            weights_only=True,
        )
    curve = pd.DataFrame(curves.rows)
    curve["kept"] = curve["epoch"] == best.best_epoch
    model.load_state_dict(best.weights)
    model.cpu().requires_grad_(True).eval()
    if folder is not None:
        curve.to_csv(folder / CURVES, index=False)
        write_document(model.as_dict(), folder / MODEL)
    return curve


def _read_back(model: CrysXPP, folder: Path) -> pd.DataFrame:
    """The curve of a finished run, and its weights into ``model``.

    Raises:
        SettingsError: the folder lacks the curve.
        ModelFileError: its model is damaged.
    """
    finished = CrysXPP.from_dict(read_document(folder / MODEL))
    if not (folder / CURVES).exists():
        raise SettingsError(f"{folder} lacks {CURVES}; remove it to start afresh.")
    model.load_state_dict(finished.state_dict())
    model.eval()
    return pd.read_csv(folder / CURVES)
