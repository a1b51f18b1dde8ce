"""Training batches of crystal graphs: which crystals, and what the encoder may see of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from crysxpp_mm.data.targets import TargetTable
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.backend import Graph
from crysxpp_mm.graph.batch import ATOM_FEATURES, DISTANCE, ELEMENT_FRACTIONS, make_batch
from crysxpp_mm.models.decoder import PairIndex, pair_index
from crysxpp_mm.models.targets import TargetValues
from crysxpp_mm.training.config import PretrainConfig


class PretrainBatch(NamedTuple):
    """A corrupted batch and what it was."""

    graph: Graph  # what the encoder sees
    pairs: PairIndex
    features: Tensor  # (n_atoms, 92) true features
    distances: Tensor  # (n_bonds,) true bond lengths, Angstrom
    hidden: Tensor  # (n_atoms,) bool, atoms whose features were hidden
    targets: TargetValues | None = None  # standardized pretext targets, where there are any


def hidden_atoms(
    graphs: CrystalGraphs, config: PretrainConfig, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw the atoms whose features the encoder does not see, shape ``(n_atoms,)``."""
    total = int(graphs.atom_offsets[-1])
    masked = rng.random(len(graphs)) < config.masked
    by_species = masked & (rng.random(len(graphs)) < config.mask_species)
    hidden = rng.random(total) < config.mask_fraction
    hidden &= np.repeat(masked & ~by_species, graphs.n_atoms)
    for index in np.flatnonzero(by_species):
        entries = slice(graphs.species_offsets[index], graphs.species_offsets[index + 1])
        numbers = graphs.species_numbers[entries]
        if len(numbers):
            sites = graphs.species_sites[entries][numbers == rng.choice(np.unique(numbers))]
            hidden[graphs.atom_offsets[index] + sites] = True
    return hidden


def pretrain_batch(
    graphs: CrystalGraphs, config: PretrainConfig, rng: np.random.Generator
) -> PretrainBatch:
    """Batch ``graphs`` and corrupt what the encoder sees, as ``config`` says."""
    graph = make_batch(graphs, element_fractions=config.element_channel)
    features, distances = graph.ndata[ATOM_FEATURES], graph.edata[DISTANCE]
    hidden = torch.from_numpy(hidden_atoms(graphs, config, rng))
    for name in (ATOM_FEATURES, ELEMENT_FRACTIONS):
        if name in graph.ndata:
            graph.ndata[name] = graph.ndata[name].masked_fill(hidden[:, None], 0.0)
    if config.strain:
        chosen = rng.random(len(graphs)) < config.strained
        scale = np.exp(chosen * rng.normal(0.0, config.strain, len(graphs))).astype(np.float32)
        graph.edata[DISTANCE] = distances * torch.from_numpy(np.repeat(scale, graphs.n_bonds))
    return PretrainBatch(graph, pair_index(graphs), features, distances, hidden)


class EpochOfBatches(Dataset[PretrainBatch]):
    """The batches of one epoch; the same epoch gives the same batches in every run."""

    def __init__(
        self,
        graphs: CrystalGraphs,
        indices: NDArray[np.int64],
        config: PretrainConfig,
        *,
        epoch: int,
        shuffle: bool,
        targets: TargetTable | None = None,
    ) -> None:
        self.targets = targets
        self.graphs = graphs
        self.config = config
        self.key = (config.seed, epoch if shuffle else -1 % 2**32)
        self.batches = epoch_batches(indices, config, epoch=epoch, shuffle=shuffle)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> PretrainBatch:
        rng = np.random.default_rng([*self.key, index])
        chosen = self.batches[index]
        batch = pretrain_batch(self.graphs.select(chosen), self.config, rng)
        if self.targets is None:
            return batch
        return batch._replace(targets=target_values(self.targets.select(self.graphs, chosen)))


def target_values(table: TargetTable) -> TargetValues:
    """The targets of a table as tensors."""
    return TargetValues(torch.from_numpy(table.sites), torch.from_numpy(table.crystals))


def epoch_batches(
    indices: NDArray[np.int64], config: PretrainConfig, *, epoch: int, shuffle: bool
) -> list[NDArray[np.int64]]:
    """Split crystals into batches; a shuffled pass through a large set takes several epochs."""
    if shuffle:
        parts = -(-len(indices) // config.max_epoch_crystals)
        pass_number, part = divmod(epoch, parts)
        order = np.random.default_rng([config.seed, 1, pass_number]).permutation(indices)
        indices = np.array_split(order, parts)[part]
    n_batches = max(1, round(len(indices) / config.batch_size))
    return np.array_split(indices, n_batches)
