"""The head of CrysAE that predicts what a structure implies: its pretext targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from crysxpp_mm.errors import DataError
from crysxpp_mm.graph.backend import Graph
from crysxpp_mm.graph.targets import PretextTarget, find_targets
from crysxpp_mm.models.pooling import mean_pool

LIMIT = 5.0
"""Standardized targets are clipped to this many standard deviations."""


class TargetValues(NamedTuple):
    """Pretext targets of the sites and the crystals of a batch, standardized."""

    sites: Tensor  # (n_atoms, n_site_columns)
    crystals: Tensor  # (n_graphs, n_crystal_columns)


class _Columns(nn.Module):
    """Two dense layers, and the scale of the columns that they predict."""

    mean: Tensor
    std: Tensor

    def __init__(self, hidden_dim: int, n_columns: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(hidden_dim, hidden_dim, dtype=torch.float32)
        self.out = nn.Linear(hidden_dim, n_columns, dtype=torch.float32)
        self.register_buffer("mean", torch.zeros(n_columns, dtype=torch.float32))
        self.register_buffer("std", torch.ones(n_columns, dtype=torch.float32))

    def forward(self, rows: Tensor) -> Tensor:
        """Standardized columns, ``(n_rows, n_columns)``."""
        columns: Tensor = self.out(functional.silu(self.hidden(rows)))
        return columns

    def fit_scale(self, values: Tensor) -> None:
        """Take the scale of ``values``, ``(n_rows, n_columns)``; constant columns keep theirs."""
        wide = values.double()
        std = wide.std(0, unbiased=False)
        self.mean.copy_(wide.mean(0))
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))

    def standardize(self, values: Tensor) -> Tensor:
        """Values in standard deviations from the mean, clipped."""
        return ((values - self.mean) / self.std).clamp(-LIMIT, LIMIT)


def _columns(hidden_dim: int, targets: Sequence[PretextTarget]) -> _Columns | None:
    n_columns = sum(target.size for target in targets)
    return _Columns(hidden_dim, n_columns) if n_columns else None


class TargetHead(nn.Module):
    """Predict pretext targets from the node embeddings of the last layer.

    Every embedding is brought to zero mean and unit variance over its components; two dense
    layers make the targets of a site of it, and two more those of a crystal of the mean over its
    atoms. Targets are in standard deviations of the training set, whose scale is kept with the
    weights.

    Args:
        hidden_dim: Width of the node embeddings.
        targets: Names of pretext targets, keys of ``crysxpp_mm.graph.targets.TARGETS``.

    Raises:
        SettingsError: there is no target of a name, or one is named twice.
    """

    def __init__(self, *, hidden_dim: int, targets: Sequence[str]) -> None:
        super().__init__()
        self.targets = tuple(targets)
        self.sites = _columns(hidden_dim, find_targets(targets, "site"))
        self.crystals = _columns(hidden_dim, find_targets(targets, "crystal"))

    def forward(self, atoms: Tensor, graph: Graph) -> TargetValues:
        """Predict the standardized targets.

        Args:
            atoms: Node embeddings of the last layer, shape ``(n_atoms, hidden_dim)``.
            graph: The batch that they belong to.
        """
        atoms = functional.layer_norm(atoms, atoms.shape[1:])
        rows = TargetValues(atoms, mean_pool(graph, atoms))
        parts = zip((self.sites, self.crystals), rows, strict=True)
        return TargetValues(*(row[:, :0] if part is None else part(row) for part, row in parts))

    def fit_scale(self, values: TargetValues) -> None:
        """Take mean and standard deviation from the values of a training set.

        Raises:
            DataError: the values have other columns than this head predicts.
        """
        for part, rows in zip((self.sites, self.crystals), values, strict=True):
            n_columns = 0 if part is None else len(part.mean)
            if rows.shape[1] != n_columns:
                raise DataError(
                    f"the targets have {rows.shape[1]} columns where the model predicts "
                    f"{n_columns}; compute them with the targets of the settings."
                )
            if part is not None:
                part.fit_scale(rows)

    def standardize(self, values: TargetValues) -> TargetValues:
        """Values as the head predicts them: in standard deviations, clipped."""
        parts = zip((self.sites, self.crystals), values, strict=True)
        return TargetValues(
            *(rows if part is None else part.standardize(rows) for part, rows in parts)
        )
