"""Pretext targets in a pretraining: that they fit, their scale, and how well they are predicted."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from crysxpp_mm.data.targets import TargetTable
from crysxpp_mm.errors import DataError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.batch import atom_batches
from crysxpp_mm.graph.targets import find_targets
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.targets import TargetHead, TargetValues
from crysxpp_mm.training.batches import target_values
from crysxpp_mm.training.config import PretrainConfig
from crysxpp_mm.training.reconstruction import BATCH_ATOMS


def check_targets(
    targets: TargetTable | None, graphs: CrystalGraphs, config: PretrainConfig, *, data_hash: str
) -> None:
    """Refuse targets that do not fit.

    Raises:
        DataError: they are missing, or others than the settings name, or of other crystals.
    """
    if targets is not None:
        targets.check(graphs, config.targets, data_hash=data_hash)
    elif config.targets:
        raise DataError(
            "the settings name pretext targets, but none are given; "
            "crysxpp_mm.data.targets.compute_targets makes them from the structures."
        )


def fit_scale(
    head: TargetHead, targets: TargetTable, graphs: CrystalGraphs, train: NDArray[np.int64]
) -> TargetTable:
    """Fit the scale of a head to the training crystals, and bring all targets to it."""
    head.fit_scale(target_values(targets.select(graphs, train)))
    scaled = head.standardize(target_values(targets))
    return TargetTable(
        targets.names, scaled.sites.numpy(), scaled.crystals.numpy(), targets.data_hash
    )


@torch.no_grad()
def measure_targets(model: CrysAE, graphs: CrystalGraphs, truth: TargetTable) -> dict[str, float]:
    """Share of the variance of each pretext target that is not predicted.

    Args:
        model: A model with a head of targets.
        graphs: Crystals.
        truth: Their standardized targets.

    Returns:
        Mean squared error over variance by name, from embeddings of the full graphs.
    """
    head = model.eval().target_head
    assert head is not None
    parts: list[TargetValues] = []
    for chosen in atom_batches(graphs.n_atoms, BATCH_ATOMS):
        graph = model.make_graph(graphs.select(chosen))
        parts.append(head(model.node_embeddings(graph)[-1], graph))
    measured: dict[str, float] = {}
    for of, guess, true in (
        ("site", torch.cat([part.sites for part in parts]), truth.sites),
        ("crystal", torch.cat([part.crystals for part in parts]), truth.crystals),
    ):
        squares = ((guess.cpu().numpy() - true) ** 2).mean(axis=0)
        variances = true.var(axis=0)
        start = 0
        for target in find_targets(truth.names, of):  # type: ignore[arg-type]
            rows = slice(start, start + target.size)
            measured[target.name] = float(squares[rows].mean() / max(variances[rows].mean(), 1e-12))
            start += target.size
    return measured
