"""The convolution of Eq. 1 in plain graph operations: slow, readable, what tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from crysxpp_mm.graph.backend import Graph, TorchGraph, import_dgl
from crysxpp_mm.layers.convolution import CrystalGraphConv


def _edge_inputs(graph: Graph, atoms: Tensor, bond_features: Tensor) -> Tensor:
    """``h = [z_u, z_v, s]`` of every bond, ``(n_bonds, 2 * hidden_dim + bond_dim)``."""
    neighbors, centers = graph.edges()
    return torch.cat([atoms[centers], atoms[neighbors], bond_features], dim=1)


def _sum_messages(graph: Graph, atoms: Tensor, messages: Tensor) -> Tensor:
    """Sum of the messages that arrive at each atom, ``(n_atoms, hidden_dim)``."""
    if isinstance(graph, TorchGraph):
        _, centers = graph.edges()
        return torch.zeros_like(atoms).index_add(0, centers, messages)
    function = import_dgl().function
    with graph.local_scope():
        graph.edata["message"] = messages
        graph.update_all(function.copy_e("message", "m"), function.sum("m", "total"))
        total: Tensor = graph.ndata["total"]
        return total


def reference_convolution(
    convolution: CrystalGraphConv,
    graph: Graph,
    atoms: Tensor,
    bond_features: Tensor,
    weights: Tensor,
) -> Tensor:
    """Compute what ``convolution`` does, written as Eq. 1 reads.

    In training mode the statistics of the batch are used, and running ones stay as they are.

    Args:
        convolution: The layer whose parameters are used.
        graph: Batched crystal graph.
        atoms: Shape ``(n_atoms, hidden_dim)``.
        bond_features: Shape ``(n_bonds, bond_dim)``.
        weights: Shape ``(n_bonds,)``.

    Returns:
        Shape ``(n_atoms, hidden_dim)``.
    """
    inputs = convolution.linear(_edge_inputs(graph, atoms, bond_features))
    norm = convolution.bond_norm
    if convolution.training:
        mean = (weights[:, None] * inputs).sum(0) / weights.sum()
        variance = (weights[:, None] * (inputs - mean) ** 2).sum(0) / weights.sum()
    else:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = norm.running_mean, norm.running_var
    normalized = (inputs - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias
    gate, core = normalized.chunk(2, dim=1)
    messages = weights[:, None] * torch.sigmoid(gate) * functional.softplus(core)
    total = _sum_messages(graph, atoms, messages)
    outer = convolution.atom_norm
    use_batch = convolution.training and len(total) > 1
    total = functional.batch_norm(
        total,
        None if use_batch else outer.running_mean,
        None if use_batch else outer.running_var,
        outer.weight,
        outer.bias,
        training=use_batch,
        eps=outer.eps,
    )
    return functional.softplus(atoms + total)
