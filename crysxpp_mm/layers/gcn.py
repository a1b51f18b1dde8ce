"""A plain graph convolution, the encoder that Table 7 compares with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from crysxpp_mm.layers.gated_sum import Bonds
from crysxpp_mm.layers.indexing import add_rows_, take_rows


class PlainGraphConv(nn.Module):
    """One plain graph convolution (after Kipf and Welling, ICLR 2017; Das et al. 2022, Table 7).

    ``z_u' = softplus(BN(W (z_u + sum_bonds w z_v) / (1 + sum_bonds w) + b))``. Bond lengths are
    not used; it takes them to have the interface of ``CrystalGraphConv``.
    """

    def __init__(self, *, hidden_dim: int) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.linear = nn.Linear(hidden_dim, hidden_dim, dtype=torch.float32)
        self.atom_norm = nn.BatchNorm1d(hidden_dim, dtype=torch.float32)

    def forward(self, atoms: Tensor, bond_features: Tensor, bonds: Bonds) -> Tensor:
        """Update atom embeddings from their neighbours.

        Args:
            atoms: Shape ``(n_atoms, hidden_dim)``.
            bond_features: Not used.
            bonds: The bonds of the batch.

        Returns:
            Shape ``(n_atoms, hidden_dim)``.
        """
        total, weight = atoms.clone(), atoms.new_ones(len(atoms))
        for chunk in bonds.chunks():
            messages = take_rows(atoms, chunk.neighbors) * chunk.weights[:, None]
            add_rows_(total, chunk.centers, messages)
            add_rows_(weight, chunk.centers, chunk.weights)
        updated = self.linear(total / weight[:, None])
        norm = self.atom_norm
        if self.training and len(updated) == 1:  # a batch of one atom has no statistics
            updated = functional.batch_norm(
                updated, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
        else:
            updated = norm(updated)
        return functional.softplus(updated)
