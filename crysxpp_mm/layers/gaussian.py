"""Bond features."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GaussianExpansion(nn.Module):
    """Expand bond lengths in Gaussians, ``exp(-(d - mu)^2 / width^2)``.

    The published centres are 0, 0.2, .., 8 Angstrom with a width of 0.2 Angstrom (Das et al.,
    npj Comput. Mater. 8, 43 (2022), section "Graph", after CGCNN).

    Example:
        >>> GaussianExpansion()(torch.tensor([2.0, 2.5])).shape
        torch.Size([2, 41])
    """

    centers: Tensor

    def __init__(self, *, cutoff: float = 8.0, n_gaussians: int = 41) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.n_gaussians = n_gaussians
        centers = torch.linspace(0, cutoff, n_gaussians, dtype=torch.float32)
        self.width = cutoff / (n_gaussians - 1)
        self.register_buffer("centers", centers, persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        """Gaussians of bond lengths.

        Args:
            distances: Shape ``(n_bonds,)``, Angstrom.

        Returns:
            Shape ``(n_bonds, n_gaussians)``.
        """
        return torch.exp(-(((distances[:, None] - self.centers) / self.width) ** 2))
