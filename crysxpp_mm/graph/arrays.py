"""Crystal graphs as flat arrays: the form in which they are built, stored and batched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crysxpp_mm.errors import GraphError


def offsets_from_counts(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Where each of ``n`` consecutive runs begins and the last one ends; shape ``(n + 1,)``."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def ranges(starts: NDArray[np.integer], counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Concatenate ``arange(start, start + count)`` of all runs; shape ``(counts.sum(),)``."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    within = np.repeat(starts - (ends - counts), counts)
    positions: NDArray[np.int64] = np.arange(total, dtype=np.int64) + within
    return positions


@dataclass(frozen=True, eq=False)
class CrystalGraphs:
    """One or many crystal graphs, held as concatenated arrays.

    Sites keep the order of the structure. The bonds of a site are consecutive and sorted by
    length. A site is described by its species entries: one for an ordered site, several for a
    disordered one, none for a site that is wholly vacant. Indices are local to each crystal.

    Attributes:
        atom_offsets: Shape ``(n_graphs + 1,)``; sites of graph i are ``[i]`` to ``[i + 1]``.
        bond_offsets: Shape ``(n_graphs + 1,)``.
        species_offsets: Shape ``(n_graphs + 1,)``.
        species_sites: Site of each species entry, shape ``(n_species,)``.
        species_numbers: Atomic number of each species entry, 1 to 100, shape ``(n_species,)``.
        occupancies: Occupancy of each species entry, shape ``(n_species,)``.
        degrees: Number of bonds of each site, shape ``(n_atoms,)``.
        neighbors: Site at the far end of each bond, shape ``(n_bonds,)``.
        distances: Bond lengths in Angstrom, shape ``(n_bonds,)``.
        weights: Bond weights, at most 1 (see ``CrystalGraphConverter``), shape ``(n_bonds,)``.
    """

    atom_offsets: NDArray[np.int64]
    bond_offsets: NDArray[np.int64]
    species_offsets: NDArray[np.int64]
    species_sites: NDArray[np.int32]
    species_numbers: NDArray[np.uint8]
    occupancies: NDArray[np.float32]
    degrees: NDArray[np.int32]
    neighbors: NDArray[np.int32]
    distances: NDArray[np.float32]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.atom_offsets) - 1

    def __getitem__(self, index: int) -> CrystalGraphs:
        """The graph at ``index``, so that scikit-learn can split graphs as it splits lists.

        Raises:
            IndexError: there is no such graph.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"graph index {index} is out of range for {len(self)} graphs.")
        return self.select([index])

    @property
    def n_atoms(self) -> NDArray[np.int64]:
        """Number of sites of each crystal, shape ``(n_graphs,)``."""
        return np.diff(self.atom_offsets)

    @property
    def n_bonds(self) -> NDArray[np.int64]:
        """Number of directed bonds of each crystal, shape ``(n_graphs,)``."""
        return np.diff(self.bond_offsets)

    def select(self, indices: Sequence[int] | NDArray[np.integer] | slice) -> CrystalGraphs:
        """The graphs at ``indices``, in that order, as a copy.

        Raises:
            GraphError: an index is out of range.
        """
        if isinstance(indices, slice):
            indices = range(len(self))[indices]
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(chosen) and not (-len(self) <= chosen.min() and chosen.max() < len(self)):
            raise GraphError(f"graph index {chosen.max()} is out of range for {len(self)} graphs.")
        chosen = np.where(chosen < 0, chosen + len(self), chosen)

        def pick(offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            counts = offsets[chosen + 1] - offsets[chosen]
            return offsets_from_counts(counts), ranges(offsets[chosen], counts)

        atom_offsets, atoms = pick(self.atom_offsets)
        bond_offsets, bonds = pick(self.bond_offsets)
        species_offsets, species = pick(self.species_offsets)
        return CrystalGraphs(
            atom_offsets=atom_offsets,
            bond_offsets=bond_offsets,
            species_offsets=species_offsets,
            species_sites=self.species_sites[species],
            species_numbers=self.species_numbers[species],
            occupancies=self.occupancies[species],
            degrees=self.degrees[atoms],
            neighbors=self.neighbors[bonds],
            distances=self.distances[bonds],
            weights=self.weights[bonds],
        )

    @classmethod
    def concatenate(cls, parts: Iterable[CrystalGraphs]) -> CrystalGraphs:
        """Join blocks of graphs end to end."""
        blocks = list(parts)
        joined: dict[str, NDArray[Any]] = {}
        for field in fields(cls):
            arrays = [getattr(block, field.name) for block in blocks]
            if field.name.endswith("_offsets"):
                counts = [np.diff(array) for array in arrays]
                joined[field.name] = offsets_from_counts(
                    np.concatenate(counts) if counts else np.empty(0, dtype=np.int64)
                )
            else:
                joined[field.name] = (
                    np.concatenate(arrays) if arrays else np.empty(0, dtype=DTYPES[field.name])
                )
        return cls(**joined)

    @classmethod
    def empty(cls) -> CrystalGraphs:
        """A block of no graphs."""
        return cls.concatenate([])


DTYPES: dict[str, np.dtype] = {
    "atom_offsets": np.dtype(np.int64),
    "bond_offsets": np.dtype(np.int64),
    "species_offsets": np.dtype(np.int64),
    "species_sites": np.dtype(np.int32),
    "species_numbers": np.dtype(np.uint8),
    "occupancies": np.dtype(np.float32),
    "degrees": np.dtype(np.int32),
    "neighbors": np.dtype(np.int32),
    "distances": np.dtype(np.float32),
    "weights": np.dtype(np.float32),
}
"""The dtype of every array of :class:`CrystalGraphs`."""
