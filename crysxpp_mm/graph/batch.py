"""Batches of crystal graphs, as the models read them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crysxpp_mm.elements import MAX_ATOMIC_NUMBER, N_FEATURES, feature_table
from crysxpp_mm.errors import GraphError, SettingsError
from crysxpp_mm.graph.arrays import MAX_BOND, CrystalGraphs
from crysxpp_mm.graph.backend import Backend, Graph, build_graph, move_graph

ATOM_FEATURES = "atom_features"
"""ndata, float32 ``(n_atoms, 92)``: the columns of Table 1, weighted by occupancy."""
ELEMENT_FRACTIONS = "element_fractions"
"""ndata, float32 ``(n_atoms, 100)``: occupancy of each element, for the element channel."""
DISTANCE = "distance"
"""edata, float32 ``(n_bonds,)``: bond length, Angstrom."""
ROUNDING = 1e-5
"""Rounding of weights."""
WEIGHT = "weight"
"""edata, float32 ``(n_bonds,)``: share of the bond in the sum over neighbours, 0 to 1."""


def make_batch(
    graphs: CrystalGraphs,
    *,
    device: str | torch.device | None = None,
    backend: Backend = "auto",
    element_fractions: bool = False,
) -> Graph:
    """One batched graph with the fields that this module names.

    Args:
        graphs: The crystals, in the order of the batch.
        device: Where the tensors go; the CPU if None.
        backend: ``"dgl"``, ``"torch"``, or ``"auto"`` for DGL where it can be imported.
        element_fractions: Whether to add the field of the element channel.

    Returns:
        Edges run from the neighbour to the site that has it, those of a site together.

    Raises:
        SettingsError: there is no such backend.
        MissingDependencyError: ``"dgl"`` is asked for and not installed.
    """
    total = int(graphs.atom_offsets[-1])
    starts = graphs.atom_offsets[:-1]
    destinations = np.repeat(np.arange(total, dtype=np.int64), graphs.degrees)
    sources = graphs.neighbors + np.repeat(starts, graphs.n_bonds)
    graph = build_graph(
        torch.from_numpy(sources),
        torch.from_numpy(destinations),
        batch_num_nodes=torch.from_numpy(graphs.n_atoms),
        batch_num_edges=torch.from_numpy(graphs.n_bonds),
        backend=backend,
    )
    graph.ndata[ATOM_FEATURES] = torch.from_numpy(_mix(graphs, feature_table(), N_FEATURES))
    if element_fractions:
        identity = np.eye(MAX_ATOMIC_NUMBER + 1, dtype=np.float32)[:, 1:]
        graph.ndata[ELEMENT_FRACTIONS] = torch.from_numpy(_mix(graphs, identity, MAX_ATOMIC_NUMBER))
    graph.edata[DISTANCE] = torch.from_numpy(np.array(graphs.distances))
    graph.edata[WEIGHT] = torch.from_numpy(np.array(graphs.weights))
    return graph if device is None else move_graph(graph, device)


def _mix(graphs: CrystalGraphs, table: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Occupancy-weighted sum of the rows of ``table`` at every site, ``(n_atoms, width)``."""
    total = int(graphs.atom_offsets[-1])
    rows = table[graphs.species_numbers]
    if len(rows) == total and (graphs.occupancies == 1).all():
        return rows  # every site holds one element
    sites = graphs.species_sites + np.repeat(
        graphs.atom_offsets[:-1], np.diff(graphs.species_offsets)
    )
    mixed = np.zeros((total, width), dtype=np.float32)
    np.add.at(mixed, sites, rows * graphs.occupancies[:, None])
    return mixed


def check_graph(graph: Graph, *, element_fractions: bool = False) -> None:
    """Refuse a graph from elsewhere that lacks what the models read.

    Raises:
        GraphError: a field is absent, has another shape or holds what is no number of its kind, or
            an edge leaves its crystal.
    """
    fields: list[tuple[str, dict[str, Tensor], tuple[int, ...]]] = [
        (ATOM_FEATURES, graph.ndata, (graph.num_nodes(), N_FEATURES)),
        (DISTANCE, graph.edata, (graph.num_edges(),)),
        (WEIGHT, graph.edata, (graph.num_edges(),)),
    ]
    if element_fractions:
        fields.append((ELEMENT_FRACTIONS, graph.ndata, (graph.num_nodes(), MAX_ATOMIC_NUMBER)))
    for name, data, shape in fields:
        if name not in data:
            raise GraphError(
                f"the graph has no field {name!r}; the model's make_graph makes graphs with all "
                "that it reads, and so does CrystalGraphDataset, with element_fractions=True for a "
                "model that reads elements."
            )
        if tuple(data[name].shape) != shape:
            raise GraphError(
                f"the field {name!r} of the graph has shape {tuple(data[name].shape)}, "
                f"expected {shape}."
            )
        if not data[name].is_floating_point() or not torch.isfinite(data[name]).all():
            raise GraphError(f"the field {name!r} of the graph holds NaN or infinite numbers.")
    _check_edges(graph)
    if graph.num_edges():
        _require_range(DISTANCE, graph.edata[DISTANCE], MAX_BOND)
        _require_range(WEIGHT, graph.edata[WEIGHT], 1 + ROUNDING)


def _require_range(name: str, values: Tensor, high: float) -> None:
    low, top = torch.aminmax(values)
    if low < 0 or top > high:
        raise GraphError(f"the field {name!r} of the graph must hold numbers from 0 to {high:g}.")


def _check_edges(graph: Graph) -> None:
    """Refuse edges that name no node, or a node of another crystal.

    Raises:
        GraphError: there is one, or the counts of the batch are wrong.
    """
    n_nodes, n_edges = graph.batch_num_nodes(), graph.batch_num_edges()
    if int(n_nodes.sum()) != graph.num_nodes() or int(n_edges.sum()) != graph.num_edges():
        raise GraphError("the numbers of nodes and edges of the graph's crystals do not sum up.")
    ends = torch.cumsum(n_nodes, 0)
    first = torch.repeat_interleave(ends - n_nodes, n_edges)
    last = torch.repeat_interleave(ends, n_edges)
    for nodes in graph.edges():
        if not ((nodes >= first) & (nodes < last)).all():
            raise GraphError("an edge of the graph names a node that its crystal has not.")


def atom_batches(n_atoms: NDArray[np.integer], batch_atoms: int) -> list[NDArray[np.int64]]:
    """Split consecutive crystals into batches of at most ``batch_atoms`` sites.

    A crystal with more sites than that is a batch of its own.

    Raises:
        SettingsError: ``batch_atoms`` is less than 1.
    """
    if batch_atoms < 1:
        raise SettingsError(f"batch_atoms must be at least 1, got {batch_atoms}.")
    batches: list[NDArray[np.int64]] = []
    start, atoms = 0, 0
    for index, count in enumerate(n_atoms):
        if index > start and atoms + count > batch_atoms:
            batches.append(np.arange(start, index))
            start, atoms = index, 0
        atoms += int(count)
    if len(n_atoms) > start:
        batches.append(np.arange(start, len(n_atoms)))
    return batches
