"""The decoder of CrysAE: what the node embeddings have to be able to rebuild."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from crysxpp_mm.elements import N_FEATURES
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.graph.arrays import CrystalGraphs, offsets_from_counts
from crysxpp_mm.layers.indexing import take_rows

N_MULTIPLICITIES = 6
"""Classes of Eq. 6: 1 to 5 bonds between a pair of sites, and 6 or more."""
TYPICAL_LENGTH = 2.5
"""Where the predicted bond lengths start, Angstrom."""


class PairIndex(NamedTuple):
    """All ordered pairs of sites of each crystal of a batch, and which of them are bonded.

    Crystals of equal size are neighbours in the order of the pairs, so that one matrix product
    serves them all. ``u`` is the centre of a bond, ``v`` its neighbour.
    """

    groups: list[Tensor]  # atoms of crystals of one size, each (n_crystals, size)
    bonded: Tensor  # (n_pairs,) bool: does any bond join the pair
    bonded_pairs: Tensor  # (n_bonded,) row of each bonded pair among all pairs
    first_pairs: Tensor  # (n_bonded,) row of the first pair of its centre among all pairs
    sizes: Tensor  # (n_bonded,) number of sites of its crystal
    multiplicities: Tensor  # (n_bonded,) class of its number of bonds, 0 to 5
    bond_pairs: Tensor  # (n_bonds,) row of each bond's pair among the bonded pairs
    ranks: Tensor  # (n_bonds,) rank of the bond among those of its pair, shortest first, 0 to 5

    def to(self, device: str | torch.device) -> PairIndex:
        """The same index on ``device``."""
        return PairIndex(
            [group.to(device) for group in self.groups], *(array.to(device) for array in self[1:])
        )


def pair_index(graphs: CrystalGraphs) -> PairIndex:
    """Number the pairs of ``graphs``."""
    sizes = graphs.n_atoms
    order = np.argsort(sizes, kind="stable")
    first_pair = np.empty(len(graphs), dtype=np.int64)
    first_pair[order] = offsets_from_counts(sizes[order] ** 2)[:-1]
    groups = []
    for size in np.unique(sizes):
        chosen = order[sizes[order] == size]
        groups.append(torch.from_numpy(graphs.atom_offsets[chosen][:, None] + np.arange(size)))

    crystal = np.repeat(np.arange(len(graphs)), sizes)
    local = np.arange(len(crystal)) - graphs.atom_offsets[crystal]
    row = first_pair[crystal] + local * sizes[crystal]  # pair (u, 0) of each atom u
    bond_pairs = np.repeat(row, graphs.degrees) + graphs.neighbors
    counts = np.bincount(bond_pairs, minlength=int((sizes**2).sum()))
    bonded = counts > 0
    bonded_pairs = np.flatnonzero(bonded)
    by_pair = np.argsort(row)
    centers = by_pair[np.searchsorted(row[by_pair], bonded_pairs, side="right") - 1]
    return PairIndex(
        groups=groups,
        bonded=torch.from_numpy(bonded),
        bonded_pairs=torch.from_numpy(bonded_pairs),
        first_pairs=torch.from_numpy(row[centers]),
        sizes=torch.from_numpy(sizes[crystal[centers]]),
        multiplicities=torch.from_numpy(np.minimum(counts[bonded_pairs], N_MULTIPLICITIES) - 1),
        bond_pairs=torch.from_numpy((np.cumsum(bonded) - 1)[bond_pairs]),
        ranks=torch.from_numpy(np.minimum(_rank_in_run(bond_pairs), N_MULTIPLICITIES - 1)),
    )


def _rank_in_run(keys: NDArray[np.integer]) -> NDArray[np.int64]:
    """Count the earlier entries with the same key, shape ``(n,)``."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(keys) else keys
    counts = np.diff(np.r_[starts, len(keys)])
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[order] = np.arange(len(keys)) - np.repeat(starts, counts)
    return ranks


class Reconstruction(NamedTuple):
    """Output of the decoder, made of the node embeddings."""

    atom_features: Tensor  # (n_atoms, 92) logits, Eq. 4
    existence: Tensor  # (n_pairs,) logits, Eq. 5
    multiplicity: Tensor  # (n_bonded, 6) logits, Eq. 6
    bond_lengths: Tensor  # (n_bonds,) Angstrom, Eq. 3


class CrysAEDecoder(nn.Module):
    """Rebuild a crystal graph from its node embeddings (Das et al. 2022, Eqs. 2-6).

    The pair embedding is bilinear, ``z_uv = z_u^T W_f z_v + b_f`` (Eq. 2), with ``pair_dim``
    components, and so is the existence of a bond (Eq. 5). A batch's pairs go through one matrix
    product for each size of crystal; the linear layers behind it (Eqs. 3 and 6) see the bonded
    pairs only.

    Node embeddings come out of a residual sum and have no fixed scale, which bilinear forms
    square. With ``normalize`` every embedding is first brought to zero mean and unit variance
    over its components; the article has no such step.
    """

    def __init__(self, *, hidden_dim: int = 64, pair_dim: int = 6, normalize: bool = False) -> None:
        super().__init__()
        if pair_dim < 1:
            raise SettingsError(f"pair_dim must be at least 1, got {pair_dim}.")
        self.hidden_dim = hidden_dim
        self.pair_dim = pair_dim
        self.normalize = normalize
        scale, dtype = hidden_dim**-0.5, torch.float32
        forms = torch.randn(pair_dim, hidden_dim, hidden_dim, dtype=dtype)
        self.pair_weight = nn.Parameter(forms * scale / 8)
        self.pair_bias = nn.Parameter(torch.zeros(pair_dim, dtype=dtype))
        form = torch.randn(hidden_dim, hidden_dim, dtype=dtype)
        self.existence_weight = nn.Parameter(form * scale / 8)
        self.existence_bias = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.multiplicity = nn.Linear(pair_dim, N_MULTIPLICITIES, dtype=dtype)
        self.bond_lengths = nn.Linear(pair_dim, N_MULTIPLICITIES, dtype=dtype)
        nn.init.constant_(self.bond_lengths.bias, TYPICAL_LENGTH)
        self.atom_features = nn.Linear(hidden_dim, N_FEATURES, dtype=dtype)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments that are its own."""
        return {"pair_dim": self.pair_dim, "normalize": self.normalize}

    def forward(self, atoms: Tensor, pairs: PairIndex) -> Reconstruction:
        """Rebuild features, bonds and bond lengths.

        Args:
            atoms: Node embeddings, shape ``(n_atoms, hidden_dim)``.
            pairs: The pairs of the batch.
        """
        if self.normalize:
            atoms = functional.layer_norm(atoms, atoms.shape[1:])
        existence, embeddings = self._pairs(atoms, pairs)
        lengths = self.bond_lengths(embeddings)
        rows = lengths.shape[1] * pairs.bond_pairs + pairs.ranks
        return Reconstruction(
            atom_features=self.atom_features(atoms),
            existence=existence,
            multiplicity=self.multiplicity(embeddings),
            bond_lengths=functional.relu(take_rows(lengths.reshape(-1), rows)),
        )

    def _pairs(self, atoms: Tensor, pairs: PairIndex) -> tuple[Tensor, Tensor]:
        """Logits of existence of all pairs, and embeddings of the bonded ones.

        Shapes ``(n_pairs,)`` and ``(n_bonded, pair_dim)``.
        """
        n_forms, width = self.pair_dim, self.hidden_dim
        # One gather for all groups: its gradient is one scatter, not one a group.
        atoms = take_rows(atoms, torch.cat([group.reshape(-1) for group in pairs.groups]))
        of_existence = atoms @ self.existence_weight
        of_forms = atoms @ self.pair_weight.permute(1, 0, 2).reshape(width, n_forms * width)
        counts = [group.numel() for group in pairs.groups]
        existence, products = [], []
        for group, one, several, other in zip(
            pairs.groups,
            of_existence.split(counts),
            of_forms.split(counts),
            atoms.split(counts),
            strict=True,
        ):
            crystals, size = group.shape
            right = other.view(crystals, size, width).transpose(1, 2)
            existence.append(torch.bmm(one.view(crystals, size, width), right).reshape(-1))
            left = several.view(crystals, size * n_forms, width)
            products.append(torch.bmm(left, right).reshape(-1))
        # Products of a centre follow each other by form, and for a form by neighbour.
        first = pairs.bonded_pairs + (n_forms - 1) * pairs.first_pairs
        forms = torch.arange(n_forms, device=atoms.device)
        entries = first[:, None] + pairs.sizes[:, None] * forms
        embeddings = take_rows(torch.cat(products), entries.reshape(-1))
        embeddings = embeddings.view(-1, n_forms) + self.pair_bias
        return torch.cat(existence) + self.existence_bias, embeddings
