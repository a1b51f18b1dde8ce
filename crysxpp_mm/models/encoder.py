"""The encoder that CrysAE trains and CrysXPP starts from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crysxpp_mm.elements import MAX_ATOMIC_NUMBER, N_FEATURES
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.graph.backend import Graph
from crysxpp_mm.graph.batch import ATOM_FEATURES, DISTANCE, ELEMENT_FRACTIONS, WEIGHT, check_graph
from crysxpp_mm.layers.convolution import CrystalGraphConv
from crysxpp_mm.layers.gated_sum import Bonds
from crysxpp_mm.layers.gaussian import GaussianExpansion
from crysxpp_mm.layers.gcn import PlainGraphConv
from crysxpp_mm.layers.reference import reference_convolution


class CrystalGraphEncoder(nn.Module):
    """Embed every atom of a crystal graph (Das et al. 2022, Eq. 1).

    ``z^0 = x W_x``, then ``n_convs`` convolutions. With ``element_channel`` a learned vector of
    each element is added to ``z^0``; without it, compounds that differ only by elements with
    equal columns (``crysxpp_mm.elements.indistinguishable_elements``) embed alike.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> iron = Structure(Lattice.cubic(2.87), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        >>> from crysxpp_mm.models.crysae import CrysAE
        >>> model = CrysAE.random(hidden_dim=8, n_convs=2)
        >>> layers = model.encoder(model.make_graph(model.converter.convert(iron)))
        >>> [tuple(layer.shape) for layer in layers]
        [(2, 8), (2, 8), (2, 8)]
    """

    def __init__(
        self,
        *,
        hidden_dim: int = 64,
        n_convs: int = 3,
        cutoff: float = 8.0,
        n_gaussians: int = 41,
        element_channel: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("hidden_dim", hidden_dim), ("n_convs", n_convs)):
            if value < 1:
                raise SettingsError(f"{name} must be at least 1, got {value}.")
        if n_gaussians < 2:
            raise SettingsError(f"n_gaussians must be at least 2, got {n_gaussians}.")
        self.hidden_dim = hidden_dim
        self.n_convs = n_convs
        self.cutoff = cutoff
        self.n_gaussians = n_gaussians
        self.element_channel = False
        self.embedding = nn.Linear(N_FEATURES, hidden_dim, bias=False, dtype=torch.float32)
        if element_channel:
            self.add_element_channel()
        self.expansion = GaussianExpansion(cutoff=cutoff, n_gaussians=n_gaussians)
        self.convolutions = nn.ModuleList(self._make_convolution() for _ in range(n_convs))

    def _make_convolution(self) -> nn.Module:
        """Make one convolution; the one place where a subclass differs."""
        return CrystalGraphConv(hidden_dim=self.hidden_dim, bond_dim=self.n_gaussians)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "hidden_dim": self.hidden_dim,
            "n_convs": self.n_convs,
            "cutoff": self.cutoff,
            "n_gaussians": self.n_gaussians,
            "element_channel": self.element_channel,
        }

    def add_element_channel(self) -> None:
        """Give every element a vector of its own, zero until it learns. One that is there stays."""
        if not self.element_channel:
            self.element_channel = True
            self.element_embedding = nn.Linear(
                MAX_ATOMIC_NUMBER, self.hidden_dim, bias=False, dtype=torch.float32
            )
            nn.init.zeros_(self.element_embedding.weight)

    def embed_features(self, graph: Graph, features: Tensor | None = None) -> Tensor:
        """Embed the features of every atom, ``z^0`` of shape ``(n_atoms, hidden_dim)``."""
        atoms: Tensor = self.embedding(graph.ndata[ATOM_FEATURES] if features is None else features)
        if self.element_channel:
            atoms = atoms + self.element_embedding(graph.ndata[ELEMENT_FRACTIONS])
        return atoms

    def forward(self, graph: Graph, features: Tensor | None = None) -> list[Tensor]:
        """Embed every atom, after the input layer and after each convolution.

        Args:
            graph: Batched crystal graph with the fields of ``crysxpp_mm.graph.batch``.
            features: Node features in place of the graph's own, shape ``(n_atoms, 92)``.

        Returns:
            ``n_convs + 1`` tensors of shape ``(n_atoms, hidden_dim)``.

        Raises:
            GraphError: the graph lacks a field.
        """
        check_graph(graph, element_fractions=self.element_channel)
        neighbors, centers = graph.edges()
        distinct, row = distinct_lengths(graph.edata[DISTANCE])
        bonds = Bonds(centers.long(), neighbors.long(), row, graph.edata[WEIGHT])
        bond_features = self.expansion(distinct)
        layers = [self.embed_features(graph, features)]
        for convolution in self.convolutions:
            layers.append(convolution(layers[-1], bond_features, bonds))
        return layers

    def reference(self, graph: Graph) -> list[Tensor]:
        """Compute the same in plain graph operations: slow, for comparison."""
        layers = [self.embed_features(graph)]
        for convolution in self.convolutions:
            assert isinstance(convolution, CrystalGraphConv)
            layers.append(
                reference_convolution(
                    convolution,
                    graph,
                    layers[-1],
                    self.expansion(graph.edata[DISTANCE]),
                    graph.edata[WEIGHT],
                )
            )
        return layers


class PlainGraphEncoder(CrystalGraphEncoder):
    """The encoder with plain graph convolutions, which see no bond lengths (Table 7)."""

    def _make_convolution(self) -> nn.Module:
        return PlainGraphConv(hidden_dim=self.hidden_dim)


def distinct_lengths(distances: Tensor) -> tuple[Tensor, Tensor]:
    """Find the distinct bond lengths, and the one of each bond.

    Distances repeat in crystals, so their features are computed once.

    Args:
        distances: Shape ``(n_bonds,)``, Angstrom.

    Returns:
        Lengths, shape ``(n_lengths,)``, Angstrom; row of each bond, shape ``(n_bonds,)``.
    """
    if distances.device.type == "cpu":  # several times faster than torch.unique
        values, rows = np.unique(distances.detach().numpy(), return_inverse=True)
        return torch.from_numpy(values), torch.from_numpy(rows)
    values_and_rows: tuple[Tensor, Tensor] = torch.unique(distances, return_inverse=True)
    return values_and_rows
