"""From a pymatgen Structure to a crystal graph, by one exactly invariant rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from monty.json import MSONable
from numpy.typing import NDArray
from pymatgen.core import Composition, DummySpecies, IStructure, Structure

from crysxpp_mm.elements import MAX_ATOMIC_NUMBER
from crysxpp_mm.errors import (
    SettingsError,
    StructureError,
    StructureTypeError,
    UnknownElementError,
)
from crysxpp_mm.graph.arrays import CrystalGraphs, offsets_from_counts
from crysxpp_mm.graph.neighbors import (
    NeighborPairs,
    nearest_neighbors,
    sorted_pairs,
    volume_and_heights,
)

if TYPE_CHECKING:
    import dgl

MIN_DISTANCE = 0.01
"""Two sites closer than this (Angstrom) are in one place."""
MIN_VOLUME_PER_SITE = 0.1
"""A cell with less room than this for each site (cubic Angstrom) has no volume to speak of."""
MIN_HEIGHT = 0.1
"""A reduced cell thinner than this (Angstrom) has no volume to speak of."""


class Crystal(NamedTuple):
    """What a graph needs of a structure: cell, positions (Angstrom), species."""

    lattice: NDArray[np.float64]
    positions: NDArray[np.float64]
    periodic: NDArray[np.int64]
    species_sites: NDArray[np.int32]
    species_numbers: NDArray[np.uint8]
    occupancies: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class CrystalGraphConverter(MSONable):
    """Turn structures into crystal graphs: bonds to the nearest neighbours of every site.

    A site gets the bonds to its ``max_neighbors`` nearest neighbours within ``cutoff``, periodic
    images included (Das et al., npj Comput. Mater. 8, 43 (2022), section "Graph"). Where the last
    of them falls into a shell of equal distance, the shell is kept whole and its bonds share the
    places left: with ``d`` the distance of the last neighbour, ``n_inside`` neighbours closer than
    ``d - shell_tolerance`` and ``n_shell`` within ``shell_tolerance`` of ``d``, a bond of the shell
    weighs ``(max_neighbors - n_inside) / n_shell`` and every other bond 1. The weights of a site
    sum to ``max_neighbors``, and the graph does not depend on the choice of cell, origin,
    orientation or site order. A site with fewer neighbours has fewer bonds, of weight 1; a site
    with none is a node without bonds.

    Attributes:
        cutoff: Longest bond, Angstrom.
        max_neighbors: Neighbours of a site.
        shell_tolerance: Distances that differ by no more than this are equal, Angstrom.
    """

    cutoff: float = 8.0
    max_neighbors: int = 12
    shell_tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.cutoff <= 20:
            raise SettingsError(f"cutoff must lie in 0 to 20 Angstrom, got {self.cutoff}.")
        if self.max_neighbors < 1:
            raise SettingsError(f"max_neighbors must be at least 1, got {self.max_neighbors}.")
        if not 0 < self.shell_tolerance <= 0.1:
            raise SettingsError(
                f"shell_tolerance must lie in 0 to 0.1 Angstrom, got {self.shell_tolerance}."
            )

    def convert(self, structure: IStructure | Mapping[str, Any]) -> CrystalGraphs:
        """The graph of one structure, as a block of length 1.

        Args:
            structure: A Structure, or the dictionary that ``Structure.as_dict`` makes.

        Raises:
            StructureTypeError: it is something else.
            UnknownElementError: a species is no element from 1 to 100.
            StructureError: no sites, numbers that are not finite, a cell without volume, or two
                sites in one place.
        """
        crystal = read_crystal(structure)
        return self._assemble([crystal], [self._neighbors(crystal)])

    def convert_many(self, structures: Iterable[IStructure | Mapping[str, Any]]) -> CrystalGraphs:
        """The graphs of many structures, in their order.

        Raises:
            StructureTypeError, UnknownElementError, StructureError: as ``convert``; the message
                begins with the position of the structure, counted from 0.
        """
        graphs, errors = self.convert_each(structures)
        for position, error in errors.items():
            raise type(error)(f"structure {position}: {error}") from error
        return graphs

    def convert_each(
        self, structures: Iterable[IStructure | Mapping[str, Any]]
    ) -> tuple[CrystalGraphs, dict[int, Exception]]:
        """The graphs of those structures that have one, and why the others have none.

        Returns:
            The graphs, in order, and the error of each remaining structure by its position.
        """
        crystals: list[Crystal] = []
        pairs: list[NeighborPairs] = []
        errors: dict[int, Exception] = {}
        for position, structure in enumerate(structures):
            try:
                crystal = read_crystal(structure)
                pairs.append(self._neighbors(crystal))
                crystals.append(crystal)
            except (StructureError, StructureTypeError) as error:
                errors[position] = error
        return self._assemble(crystals, pairs), errors

    def to_dgl(
        self,
        structures: IStructure | Mapping[str, Any] | Iterable[IStructure | Mapping[str, Any]],
        *,
        device: str | None = None,
    ) -> dgl.DGLGraph:
        """A ``dgl.DGLGraph`` of one structure, or the batched graph of several.

        Fields, all float32: ``ndata["atom_features"]`` ``(n_atoms, 92)``, the columns that
        ``crysxpp_mm.elements.column_names`` names; ``edata["distance"]`` ``(n_bonds,)``,
        Angstrom; ``edata["weight"]`` ``(n_bonds,)``. An edge runs from the neighbour to the site
        that has it.

        Raises:
            MissingDependencyError: DGL is not installed.
            StructureTypeError, UnknownElementError, StructureError: as ``convert``.
        """
        from crysxpp_mm.graph.batch import make_batch

        single = isinstance(structures, IStructure | Mapping)
        graphs = self.convert(structures) if single else self.convert_many(structures)  # type: ignore[arg-type]
        return make_batch(graphs, device=device, backend="dgl")

    def build(self, crystals: Sequence[Crystal]) -> tuple[CrystalGraphs, dict[int, Exception]]:
        """The graphs of those crystals that have one, and why the others have none.

        Args:
            crystals: What :func:`read_crystal` takes out of structures.

        Returns:
            The graphs, in order, and the error of each remaining crystal by its position.
        """
        pairs: dict[int, NeighborPairs] = {}
        errors: dict[int, Exception] = {}
        for position, crystal in enumerate(crystals):
            try:
                pairs[position] = self._neighbors(crystal)
            except StructureError as error:
                errors[position] = error
        return self._assemble([crystals[row] for row in pairs], list(pairs.values())), errors

    def _neighbors(self, crystal: Crystal) -> NeighborPairs:
        pairs = nearest_neighbors(
            crystal.lattice,
            crystal.positions,
            crystal.periodic,
            cutoff=self.cutoff,
            max_neighbors=self.max_neighbors,
            tolerance=self.shell_tolerance,
        )
        if len(pairs.distances) and pairs.distances.min() < MIN_DISTANCE:
            closest = int(pairs.distances.argmin())
            raise StructureError(
                f"sites {pairs.centers[closest]} and {pairs.neighbors[closest]} are in one place "
                f"({pairs.distances[closest]:.2g} Angstrom apart); remove one of them, or describe "
                "a mixed site by partial occupancies (Structure.merge_sites helps)."
            )
        return pairs

    def _assemble(self, crystals: list[Crystal], pairs: list[NeighborPairs]) -> CrystalGraphs:
        """Apply the rule of the class to all pairs at once."""
        if not crystals:
            return CrystalGraphs.empty()
        n_atoms = np.array([len(crystal.positions) for crystal in crystals])
        atom_offsets = offsets_from_counts(n_atoms)
        centers = np.concatenate(
            [pair.centers + start for pair, start in zip(pairs, atom_offsets[:-1], strict=True)]
        )
        neighbors = np.concatenate([pair.neighbors for pair in pairs])
        distances = np.concatenate([pair.distances for pair in pairs])
        centers, neighbors, distances = sorted_pairs(centers, neighbors, distances)

        # Distance of the last wanted neighbour of every site; infinite where there are fewer.
        total = int(atom_offsets[-1])
        found = np.bincount(centers, minlength=total)
        first = offsets_from_counts(found)[:-1]
        last = np.full(total, np.inf)
        full = found >= self.max_neighbors
        last[full] = distances[first[full] + self.max_neighbors - 1]
        excess = distances - last[centers]
        keep = (excess <= self.shell_tolerance) & (distances <= self.cutoff + self.shell_tolerance)
        centers, neighbors, distances = centers[keep], neighbors[keep], distances[keep]
        inside = excess[keep] < -self.shell_tolerance
        n_inside = np.bincount(centers[inside], minlength=total)
        degrees = np.bincount(centers, minlength=total)
        share = (self.max_neighbors - n_inside) / np.maximum(degrees - n_inside, 1)
        weights = np.where(inside, 1.0, np.minimum(share, 1.0)[centers])

        bond_offsets = offsets_from_counts(degrees)[atom_offsets]
        return CrystalGraphs(
            atom_offsets=atom_offsets,
            bond_offsets=bond_offsets,
            species_offsets=offsets_from_counts(
                np.array([len(crystal.species_sites) for crystal in crystals])
            ),
            species_sites=np.concatenate([crystal.species_sites for crystal in crystals]),
            species_numbers=np.concatenate([crystal.species_numbers for crystal in crystals]),
            occupancies=np.concatenate([crystal.occupancies for crystal in crystals]),
            degrees=degrees.astype(np.int32),
            neighbors=neighbors.astype(np.int32),
            distances=distances.astype(np.float32),
            weights=weights.astype(np.float32),
        )


def read_crystal(structure: IStructure | Mapping[str, Any]) -> Crystal:
    """Check a structure and take out what a graph needs."""
    if isinstance(structure, Mapping) and not isinstance(structure, Composition):
        structure = _from_dict(structure)
    if not isinstance(structure, IStructure):
        raise StructureTypeError(
            f"expected a pymatgen Structure or its dictionary, got {_name(structure)}; "
            "build a Structure with a lattice (a molecule can be put into a box with "
            "Molecule.get_boxed_structure)."
        )
    sites = structure.sites
    if not sites:
        raise StructureError("the structure has no sites.")
    matrix = np.array(structure.lattice.matrix, dtype=np.float64, order="C")
    fractional = np.array([site.frac_coords for site in sites], dtype=np.float64)
    if not np.isfinite(matrix).all():
        raise StructureError(
            f"{structure.formula}: a lattice vector is NaN or infinite; check the cell parameters."
        )
    if not np.isfinite(fractional).all():
        bad = int(np.flatnonzero(~np.isfinite(fractional).all(axis=1))[0])
        raise StructureError(
            f"{structure.formula}: the coordinates of site {bad} are NaN or infinite; "
            "correct or remove the site."
        )
    periodic = np.array(structure.lattice.pbc, dtype=np.int64)
    matrix, fractional = _regular_cell(matrix, fractional, periodic, structure)
    species = _species(structure)
    return Crystal(matrix, fractional @ matrix, periodic, *species)


def _from_dict(d: Mapping[str, Any]) -> IStructure:
    if "lattice" not in d or "sites" not in d:
        raise StructureTypeError(
            "expected a pymatgen Structure or the dictionary that Structure.as_dict makes, got a "
            f"dictionary with the keys {', '.join(map(repr, list(d)[:5])) or '(none)'}."
        )
    try:
        return Structure.from_dict(without_code(d))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StructureError(
            f"the dictionary does not describe a Structure ({type(error).__name__}: {error})."
        ) from error


def without_code(d: Mapping[str, Any]) -> dict[str, Any]:
    """What a graph needs of the dictionary of a structure, and nothing that could run code.

    pymatgen hands the properties of sites to monty, which imports the modules that they name.
    """
    wanted = ("species", "abc", "xyz")
    sites = [
        {key: site[key] for key in wanted if key in site} if isinstance(site, Mapping) else site
        for site in d["sites"]
    ]
    return {"lattice": d["lattice"], "sites": sites}


def _regular_cell(
    matrix: NDArray[np.float64],
    fractional: NDArray[np.float64],
    periodic: NDArray[np.int64],
    structure: IStructure,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same crystal in a cell that is cheap to search: sites inside, vectors not too skewed.

    Raises:
        StructureError: the cell has no volume to speak of.
    """
    volume, heights = volume_and_heights(matrix)
    if volume < MIN_VOLUME_PER_SITE * len(fractional):
        raise StructureError(
            f"{structure.formula}: the cell of {len(fractional)} sites has a volume of "
            f"{volume:.3g} cubic Angstrom; check the lattice vectors and their unit."
        )
    if min(heights) < 1.5 and periodic.all():
        positions = fractional @ matrix
        matrix = np.array(structure.lattice.get_lll_reduced_lattice().matrix, order="C")
        if min(volume_and_heights(matrix)[1]) < MIN_HEIGHT:
            raise StructureError(
                f"{structure.formula}: the cell is thinner than {MIN_HEIGHT} Angstrom; "
                "check the lattice vectors and their unit."
            )
        fractional = positions @ np.linalg.inv(matrix)
    return matrix, fractional - np.floor(fractional) * periodic


def _species(
    structure: IStructure,
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float32]]:
    """Species entries of all sites: site, atomic number, occupancy."""
    numbers = _ordered_numbers(structure)
    if numbers is not None:
        n_atoms = len(numbers)
        return np.arange(n_atoms, dtype=np.int32), numbers, np.ones(n_atoms, dtype=np.float32)
    entries: list[tuple[int, int, float]] = []
    for index, site in enumerate(structure.sites):
        for species, occupancy in site.species.items():
            if isinstance(species, DummySpecies) or species.Z > MAX_ATOMIC_NUMBER:
                raise UnknownElementError(
                    f"{structure.formula}: site {index} holds {species}, which has no node "
                    f"features; the elements 1 to {MAX_ATOMIC_NUMBER} have. Replace or remove it."
                )
            if not np.isfinite(occupancy):
                raise StructureError(
                    f"{structure.formula}: the occupancy of {species} on site {index} is "
                    f"{occupancy}; correct it."
                )
            entries.append((index, species.Z, occupancy))
    sites, atomic_numbers, occupancies = zip(*entries, strict=True) if entries else ((), (), ())
    return (
        np.array(sites, dtype=np.int32),
        np.array(atomic_numbers, dtype=np.uint8),
        np.array(occupancies, dtype=np.float32),
    )


def _ordered_numbers(structure: IStructure) -> NDArray[np.uint8] | None:
    """Atomic numbers where every site holds one known element fully, else None."""
    numbers = []
    for site in structure.sites:
        species = site.species
        kinds = list(species)
        if len(kinds) != 1 or species.num_atoms != 1:
            return None
        kind = kinds[0]
        if isinstance(kind, DummySpecies) or kind.Z > MAX_ATOMIC_NUMBER:
            return None
        numbers.append(kind.Z)
    return np.array(numbers, dtype=np.uint8)


def _name(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
