"""Crystal graphs as flat arrays: the form in which they are built, stored and batched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from crysxpp_mm.errors import GraphError


def offsets_from_counts(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Offsets of ``n`` consecutive runs, and the end of the last; shape ``(n + 1,)``."""
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

    Arrays that are handed in are checked; an index past its crystal would be read from memory that
    belongs to something else.

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

    def __post_init__(self) -> None:
        check_arrays({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def trusted(cls, **arrays: NDArray[Any]) -> Self:
        """A block of arrays that are right because of how they were made; nothing is checked."""
        graphs = cls.__new__(cls)
        for name in DTYPES:
            object.__setattr__(graphs, name, arrays[name])
        return graphs

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
        return CrystalGraphs.trusted(
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
        return cls.trusted(**joined)

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

MAX_ELEMENT = 100
"""The last element that a graph may hold."""
MAX_OCCUPANCY = 1.01
"""Occupancies are at most 1, up to rounding."""
MAX_BOND = 21.0
"""No rule makes longer bonds, Angstrom."""
_COLUMNS_OF = {
    "atom_offsets": ("degrees",),
    "bond_offsets": ("neighbors", "distances", "weights"),
    "species_offsets": ("species_sites", "species_numbers", "occupancies"),
}


def check_arrays(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse arrays that are no crystal graphs.

    Args:
        arrays: Those of :class:`CrystalGraphs`, by name.

    Raises:
        GraphError: the array that is wrong is named.
    """
    for name, kind in DTYPES.items():
        array = arrays[name]
        kinds = "iu" if kind.kind in "iu" else "f"
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in kinds:
            raise GraphError(f"{name} must be an array of one dimension of {kind}.")
    for name in _COLUMNS_OF:
        _check_lengths(name, arrays)
    _require_range("degrees", arrays["degrees"], 0, len(arrays["neighbors"]))
    bonds_before = offsets_from_counts(arrays["degrees"])[arrays["atom_offsets"]]
    if (wrong := bonds_before != arrays["bond_offsets"]).any():
        row = int(np.flatnonzero(wrong)[0]) - 1
        raise GraphError(f"degrees of crystal {row} do not sum to its bonds.")
    n_atoms = np.diff(arrays["atom_offsets"])
    for column, ends in (("neighbors", "bond_offsets"), ("species_sites", "species_offsets")):
        sites = np.repeat(n_atoms, np.diff(arrays[ends]))
        if not ((arrays[column] >= 0) & (arrays[column] < sites)).all():
            raise GraphError(f"{column} names a site that its crystal has not.")
    _require_range("species_numbers", arrays["species_numbers"], 1, MAX_ELEMENT)
    _require_range("occupancies", arrays["occupancies"], 0, MAX_OCCUPANCY)
    _require_range("distances", arrays["distances"], 0, MAX_BOND)
    _require_range("weights", arrays["weights"], 0, 1 + 1e-5)


def _check_lengths(name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Check offsets and the columns that they cut.

    Raises:
        GraphError: they fall, or do not fit together.
    """
    offsets = arrays[name]
    if not len(offsets) or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise GraphError(f"{name} must begin with 0 and must not fall.")
    if len(offsets) != len(arrays["atom_offsets"]):
        raise GraphError(f"{name} is of another length than atom_offsets.")
    for column in _COLUMNS_OF[name]:
        if len(arrays[column]) != offsets[-1]:
            raise GraphError(
                f"{column} has {len(arrays[column])} entries, {name} ends with {offsets[-1]}."
            )


def _require_range(name: str, array: NDArray[Any], low: float, high: float) -> None:
    if len(array) and not (low <= array.min() and array.max() <= high):
        raise GraphError(f"{name} must be numbers from {low:g} to {high:g}; one is not.")
