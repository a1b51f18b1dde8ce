"""Train the members of an ensemble, one after the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crysxpp_mm.estimators.options import EstimatorOptions
from crysxpp_mm.graph.arrays import DTYPES, CrystalGraphs
from crysxpp_mm.models.property import PropertyModel
from crysxpp_mm.serialization import digest, weights_to_dict
from crysxpp_mm.training.fit import FitRows, fit_model
from crysxpp_mm.training.objectives import Objective
from crysxpp_mm.training.options import FitOptions
from crysxpp_mm.version import __version__

StageName = Literal["fit", "fine_tune"]
MakeObjective = Callable[[PropertyModel[Any], NDArray[Any]], tuple[NDArray[Any], Objective]]
"""Turns what is learned into a network's units, and makes the loss there."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Crystals, what is learned of them, and how.

    Attributes:
        graphs: The crystals.
        encoded: Their labels in the units of training.
        rows: To learn from, and to choose the best epoch; the same for all members.
        options: Of the training; each member has a seed of its own, ``options.seed`` and on.
        make_objective: Makes the loss of a network.
        stage: ``"fine_tune"`` goes on with trained networks.
    """

    graphs: CrystalGraphs
    encoded: NDArray[Any]
    rows: FitRows
    options: FitOptions
    make_objective: MakeObjective
    stage: StageName

    def record(self) -> dict[str, Any]:
        """Tell from what and how is learned, JSON-ready."""
        return {
            "stage": self.stage,
            "n_train": len(self.rows.train),
            "n_validation": len(self.rows.held_out),
            "data_hash": digest(*(getattr(self.graphs, field) for field in DTYPES), self.encoded),
            "config": asdict(self.options),
            "version": __version__,
        }


class Trained(NamedTuple):
    """The outcome of a stage of learning."""

    members: list[PropertyModel[Any]]
    curve: pd.DataFrame
    record: dict[str, Any]


def train_members(
    networks: Sequence[PropertyModel[Any]], data: TrainingData, run: EstimatorOptions, label: str
) -> Trained:
    """Train every network in place.

    Args:
        networks: The members; for numbers they carry the mean and the scale of the targets.
        data: What to learn from.
        run: Where to run, and where checkpoints go.
        label: Text before the progress bar.
    """
    record = data.record()
    curves = []
    for member, network in enumerate(networks):
        options = replace(data.options, seed=data.options.seed + member)
        curve = _train_one(network, replace(data, options=options), record, run, label)
        curves.append(curve.assign(member=member))
    return Trained(list(networks), pd.concat(curves, ignore_index=True), record)


def _train_one(
    network: PropertyModel[Any],
    data: TrainingData,
    record: dict[str, Any],
    run: EstimatorOptions,
    label: str,
) -> pd.DataFrame:
    """Train one member; returns its curve."""
    targets, objective = data.make_objective(network, data.encoded)
    earlier = dict(network.metadata)
    facts = {
        "config": asdict(data.options),
        "n_train": record["n_train"],
        "n_validation": record["n_validation"],
        "pretrained": earlier.get("pretrained"),
        "version": __version__,
    }
    if data.stage == "fine_tune":
        facts["before"] = [*earlier.pop("before", []), earlier]
    network.metadata = facts
    run_id, folder = "", None
    if run.checkpoint_dir is not None:
        identity = {
            **facts,
            "network": network.settings,
            "start": weights_to_dict(network)["sha256"],
            "data_hash": record["data_hash"],
            "rows": digest(*data.rows, targets),
            "objective": objective.to_plain(),
        }
        text = json.dumps(identity, sort_keys=True, default=np.ndarray.tolist)
        run_id = hashlib.sha256(text.encode()).hexdigest()
        folder = Path(run.checkpoint_dir) / f"run-{run_id[:12]}"
    return fit_model(
        network,
        data.graphs,
        targets,
        objective,
        data.options,
        data.rows,
        continuing=data.stage == "fine_tune",
        checkpoint_dir=folder,
        run_id=run_id,
        accelerator=run.accelerator,
        devices=run.devices,
        label=label if run.pbar else None,
    )
