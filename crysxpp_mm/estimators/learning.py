"""One stage of learning from labels: all members of an ensemble, one after the other."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crysxpp_mm.graph.arrays import DTYPES, CrystalGraphs
from crysxpp_mm.models.crysxpp import CrysXPP
from crysxpp_mm.serialization import digest, weights_to_dict
from crysxpp_mm.training.config import FineTuneConfig
from crysxpp_mm.training.finetune import Task, fine_tune
from crysxpp_mm.version import __version__

StageName = Literal["fit", "fine_tune"]

FINE_TUNE_RATE = 1 / 16
"""Rate at which a fitted estimator goes on, as a multiple of that of ``fit``.

Measured on log10 K of elastic_tensor_2015, learned from 600 crystals without Al and Si and then
from 60 with them, 10 epochs; mean absolute errors of other crystals with Al or Si, and of others
without: before 0.041 and 0.047; at 1/4 of the rate 0.032 and 0.070, at 1/16 0.029 and 0.058, at
1/64 0.028 and 0.053. With log10 G as the new label 0.084, 0.083 and 0.101 for the former. More
epochs help neither.
"""


class Problem(NamedTuple):
    """What the networks have to learn."""

    targets: NDArray[Any]  # (n, n_targets) in the units of training, NaN = unknown; or classes
    n_outputs: int
    class_weights: NDArray[np.float64] | None = None
    floors: NDArray[np.float64] | None = None  # (n_targets,); lower outputs are taken for these


class Labelled(NamedTuple):
    """What is learned from, rows without a label left out."""

    graphs: CrystalGraphs  # of X, then those of validation
    labels: Any  # of the same rows
    n_rows: int  # of X
    groups: NDArray[np.int64] | None  # of the rows of X
    left_out: pd.DataFrame


class Split(NamedTuple):
    """Rows by their number among the graphs; the same for all members."""

    train: NDArray[np.int64]  # are learned from
    held_out: NDArray[np.int64]  # choose the best epoch


class Runs(NamedTuple):
    """How the training is run, which does not change what is learned."""

    checkpoint_dir: str | os.PathLike[str] | None
    accelerator: str
    devices: int | str
    pbar: bool
    label: str  # before the progress bar


class Stage(NamedTuple):
    """What a stage has made."""

    members: list[CrysXPP]
    curve: pd.DataFrame
    record: dict[str, Any]  # what it learned from, and how; JSON-ready


def going_on(
    config: FineTuneConfig, *, learning_rate: float | None, max_epochs: int
) -> FineTuneConfig:
    """The settings of a fine-tuning after a fit with ``config``.

    Args:
        config: Those of the fit.
        learning_rate: Rate of the readout; ``FINE_TUNE_RATE`` of that of the fit if None. That of
            the selector changes in proportion, as that of the encoder does by itself.
        max_epochs: Epochs at most, each with as many steps as one of the fit has at least.

    Raises:
        SettingsError: one of them makes no sense.
    """
    rate = config.learning_rate * FINE_TUNE_RATE if learning_rate is None else learning_rate
    changed = replace(  # which looks at the rate
        config, learning_rate=rate, max_epochs=max_epochs, frozen_epochs=0, element_start=0.0
    )
    return replace(
        changed,
        selector_rate=config.selector_rate * rate / config.learning_rate,
        min_steps=round(config.min_steps * max_epochs / config.max_epochs),
    )


def learn(
    networks: list[CrysXPP],
    graphs: CrystalGraphs,
    problem: Problem,
    split: Split,
    config: FineTuneConfig,
    *,
    task: Task,
    name: StageName,
    runs: Runs,
) -> Stage:
    """Train every network in place.

    Args:
        networks: The members; for a regression they carry the mean and the scale of the targets.
        graphs: The crystals.
        problem: What to learn of them.
        split: Rows to learn from and rows that choose the best epoch.
        config: How to train; each member has a seed of its own, ``config.seed`` and on.
        task: What the targets are.
        name: Which stage it is; ``"fine_tune"`` goes on with trained networks.
        runs: How it is run.
    """
    record: dict[str, Any] = {
        "stage": name,
        "n_train": len(split.train),
        "n_validation": len(split.held_out),
        "data_hash": digest(*(getattr(graphs, field) for field in DTYPES), problem.targets),
        "config": config.to_plain(),
        "version": __version__,
    }
    curves = []
    for member, network in enumerate(networks):
        seeded = replace(config, seed=config.seed + member)
        curve = _learn_one(network, graphs, problem, split, seeded, task, record, runs)
        curves.append(curve.assign(member=member))
    return Stage(networks, pd.concat(curves, ignore_index=True), record)


def _learn_one(
    network: CrysXPP,
    graphs: CrystalGraphs,
    problem: Problem,
    split: Split,
    config: FineTuneConfig,
    task: Task,
    record: Mapping[str, Any],
    runs: Runs,
) -> pd.DataFrame:
    """One member of the ensemble."""
    goes_on = record["stage"] == "fine_tune"
    targets, floors = problem.targets, problem.floors
    if task == "regression":
        mean, scale = network.target_mean.numpy(), network.target_scale.numpy()
        scale = np.where(scale > 0, scale, 1.0)
        targets = (targets - mean) / scale
        floors = None if floors is None else (floors - mean) / scale
    earlier = dict(network.metadata)
    facts = {
        "config": config.to_plain(),
        "n_train": len(split.train),
        "n_validation": len(split.held_out),
        "pretrained": earlier.get("pretrained"),
        "version": __version__,
    }
    if goes_on:
        facts["before"] = [*earlier.pop("before", []), earlier]
    network.metadata = facts
    run_id, folder = "", None
    if runs.checkpoint_dir is not None:
        identity = json.dumps(
            {
                **facts,
                "task": task,
                "network": network.settings,
                "start": weights_to_dict(network)["sha256"],
                "data_hash": record["data_hash"],
                "rows": digest(split.train, split.held_out, targets),
                "floors": floors,
                "class_weights": problem.class_weights,
            },
            sort_keys=True,
            default=np.ndarray.tolist,
        )
        run_id = hashlib.sha256(identity.encode()).hexdigest()
        folder = Path(runs.checkpoint_dir) / f"run-{run_id[:12]}"
    return fine_tune(
        network,
        graphs,
        targets,
        config,
        train=split.train,
        validation=split.held_out,
        task=task,
        class_weights=problem.class_weights,
        floors=floors,
        trained=goes_on,
        checkpoint_dir=folder,
        run_id=run_id,
        accelerator=runs.accelerator,
        devices=runs.devices,
        pbar=runs.pbar,
        label=runs.label,
    )
