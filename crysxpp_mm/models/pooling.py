"""From node embeddings to one row per crystal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crysxpp_mm.errors import SettingsError
from crysxpp_mm.graph.backend import Graph
from crysxpp_mm.layers.indexing import add_rows_, take_rows

MOMENTS = ("mean", "std", "max")
"""Statistics over the atoms of a crystal; all are the same for a supercell."""


def graph_of_atoms(graph: Graph) -> Tensor:
    """Index of the crystal that each atom of a batch belongs to, shape ``(n_atoms,)``."""
    sizes = graph.batch_num_nodes()
    return torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)


def mean_pool(graph: Graph, atoms: Tensor) -> Tensor:
    """Mean over the atoms of each crystal, ``(n_graphs, width)``.

    Summed in float64: over the 2,000 atoms of a large supercell, the rounding of float32 would
    be larger than what a supercell's row may differ by.
    """
    wide = atoms.dtype if atoms.device.type == "mps" else torch.float64  # which mps has not
    total = torch.zeros(graph.batch_size, atoms.shape[1], dtype=wide, device=atoms.device)
    add_rows_(total, graph_of_atoms(graph), atoms.to(wide))
    return (total / graph.batch_num_nodes()[:, None]).to(atoms.dtype)


def std_pool(graph: Graph, atoms: Tensor) -> Tensor:
    """Population standard deviation over the atoms of each crystal, ``(n_graphs, width)``.

    Deviations are squared after the mean is taken away, so that crystals of equal atoms get
    zero and not the square root of rounding errors. Where it is zero, so is its gradient.
    """
    deviation = atoms - take_rows(mean_pool(graph, atoms), graph_of_atoms(graph))
    variance = mean_pool(graph, deviation**2)
    positive = variance > 0
    return torch.where(positive, variance, 1.0).sqrt() * positive


def max_pool(graph: Graph, atoms: Tensor) -> Tensor:
    """Largest value over the atoms of each crystal, ``(n_graphs, width)``."""
    lowest = atoms.new_full((graph.batch_size, atoms.shape[1]), float("-inf"))
    index = graph_of_atoms(graph)[:, None].expand_as(atoms)
    return lowest.scatter_reduce(0, index, atoms, reduce="amax")


_POOLS = {"mean": mean_pool, "std": std_pool, "max": max_pool}


def pool(graph: Graph, layers: Sequence[Tensor], moments: Sequence[str] = MOMENTS) -> Tensor:
    """Moments of every layer side by side.

    Args:
        graph: Batched crystal graph.
        layers: Node embeddings, each ``(n_atoms, hidden_dim)``.
        moments: Any of ``MOMENTS``.

    Returns:
        Shape ``(n_graphs, len(layers) * len(moments) * hidden_dim)``: layer by layer, within a
        layer moment by moment.

    Raises:
        SettingsError: a moment is unknown.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> iron = Structure(Lattice.cubic(2.87), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        >>> from crysxpp_mm.models.crysae import CrysAE
        >>> model = CrysAE.random(hidden_dim=8, n_convs=1)
        >>> graph = model.make_graph(model.converter.convert(iron))
        >>> pool(graph, model.encoder(graph), ("mean", "std")).shape
        torch.Size([1, 32])
    """
    if unknown := [moment for moment in moments if moment not in _POOLS]:
        raise SettingsError(f"unknown moment {unknown[0]!r}; there are {', '.join(MOMENTS)}.")
    columns = [_POOLS[moment](graph, layer) for layer in layers for moment in moments]
    return torch.cat(columns, dim=1)
