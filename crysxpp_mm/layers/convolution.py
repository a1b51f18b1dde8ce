"""The convolution of Eq. 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from crysxpp_mm.layers.fused import FusedNeighborSum, fused_variance, is_fused
from crysxpp_mm.layers.gated_sum import (
    Bonds,
    GatedNeighborSum,
    rows_of_bonds,
    weighted_mean,
    weighted_variance,
)


class CrystalGraphConv(nn.Module):
    """One convolution over a crystal graph (Das et al. 2022, Eq. 1, after CGCNN).

    ``z_u' = softplus(z_u + BN(sum_bonds w sigmoid(BN(h W_c + b_c)) softplus(BN(h W_s + b_s))))``
    with ``h = [z_u, z_v, s]``. Bond weights enter the sum and the statistics of the inner batch
    norm.
    """

    def __init__(self, *, hidden_dim: int, bond_dim: int) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.bond_dim = bond_dim
        self.linear = nn.Linear(2 * hidden_dim + bond_dim, 2 * hidden_dim, dtype=torch.float32)
        self.bond_norm = nn.BatchNorm1d(2 * hidden_dim, dtype=torch.float32)
        self.atom_norm = nn.BatchNorm1d(hidden_dim, dtype=torch.float32)

    def forward(self, atoms: Tensor, bond_features: Tensor, bonds: Bonds) -> Tensor:
        """Update atom embeddings from their neighbours.

        Args:
            atoms: Shape ``(n_atoms, hidden_dim)``.
            bond_features: Features of the distinct bond lengths, ``(n_lengths, bond_dim)``.
            bonds: The bonds of the batch.

        Returns:
            Shape ``(n_atoms, hidden_dim)``.
        """
        width = self.hidden_dim
        of_center, of_neighbor, of_bond = self.linear.weight.split(
            [width, width, self.bond_dim], dim=1
        )
        projections = (
            functional.linear(atoms, of_center, self.linear.bias),
            functional.linear(atoms, of_neighbor),
            functional.linear(bond_features, of_bond),
        )
        if len(bonds.weights) == 0:  # isolated atoms only
            total = torch.zeros_like(atoms)
        else:
            norm = self.bond_norm
            mean, variance, rows = self._statistics(projections, bonds)
            given = (*projections, norm.weight, norm.bias, mean, variance, bonds, norm.eps)
            # torch types no apply
            if is_fused(atoms):
                total = FusedNeighborSum.apply(*given, self.training)  # type: ignore[no-untyped-call]
            else:
                total = GatedNeighborSum.apply(  # type: ignore[no-untyped-call]
                    *given, rows, torch.is_grad_enabled()
                )
        return functional.softplus(atoms + self._normalize_atoms(total))

    def _normalize_atoms(self, total: Tensor) -> Tensor:
        """The outer batch norm; its running statistics where a batch of one atom has none."""
        norm = self.atom_norm
        if self.training and len(total) == 1:
            return functional.batch_norm(
                total, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
        normalized: Tensor = norm(total)
        return normalized

    @torch.no_grad()
    def _statistics(
        self, projections: tuple[Tensor, Tensor, Tensor], bonds: Bonds
    ) -> tuple[Tensor, Tensor, list[Tensor] | None]:
        """Mean and variance of the inner batch norm: of this batch in training, else running.

        In training also the rows of the bonds that they were made of, less the mean, where tensors
        hold them.
        """
        norm = self.bond_norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if not self.training:
            return norm.running_mean, norm.running_var, None
        center, neighbor, length = projections
        mean = weighted_mean(bonds, center, neighbor, length)
        rows = None
        if is_fused(center):
            variance = fused_variance(bonds, center - mean, neighbor, length)
        else:
            rows = rows_of_bonds(bonds, center - mean, neighbor, length)
            variance = weighted_variance(bonds, rows)
        count = bonds.weights.sum()
        unbiased = variance * (count / (count - 1).clamp(min=1))
        momentum = norm.momentum or 0.1
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(unbiased, momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
        return mean, variance, rows
