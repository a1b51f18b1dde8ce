"""From a pymatgen Structure to a crystal graph, by one exactly invariant rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from monty.json import MSONable
from numpy.typing import NDArray
from pymatgen.core import IStructure

from crysxpp_mm.errors import SettingsError, StructureError, StructureTypeError
from crysxpp_mm.graph.arrays import CrystalGraphs, offsets_from_counts
from crysxpp_mm.graph.bonds import BondRule, Bonds, OnePlace, find_bonds
from crysxpp_mm.graph.crystal import Crystal, read_crystal
from crysxpp_mm.settings import number, whole_number

if TYPE_CHECKING:
    import dgl

BLOCK = 256
"""Crystals that are converted at a time."""
MAX_NEIGHBORS = 1000
"""Most neighbours that a rule may ask for."""


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
        set_plain = object.__setattr__  # numpy's numbers become Python's
        set_plain(self, "cutoff", number("cutoff", self.cutoff))
        set_plain(self, "shell_tolerance", number("shell_tolerance", self.shell_tolerance))
        set_plain(
            self, "max_neighbors", whole_number("max_neighbors", self.max_neighbors, at_least=1)
        )
        if not 0 < self.cutoff <= 20:
            raise SettingsError(f"cutoff must lie in 0 to 20 Angstrom, got {self.cutoff}.")
        if self.max_neighbors > MAX_NEIGHBORS:
            raise SettingsError(
                f"max_neighbors must be at most {MAX_NEIGHBORS}, got {self.max_neighbors}."
            )
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
        graphs, errors = self.build([read_crystal(structure)])
        if errors:
            raise errors[0]
        return graphs

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
        self, structures: Iterable[IStructure | Mapping[str, Any] | Crystal]
    ) -> tuple[CrystalGraphs, dict[int, Exception]]:
        """The graphs of those structures that have one, and why the others have none.

        Returns:
            The graphs, in order, and the error of each remaining structure by its position.
        """
        parts: list[CrystalGraphs] = []
        crystals: list[Crystal] = []
        positions: list[int] = []
        errors: dict[int, Exception] = {}

        def convert() -> None:
            graphs, failed = self.build(crystals)
            parts.append(graphs)
            errors.update({positions[row]: error for row, error in failed.items()})
            crystals.clear()
            positions.clear()

        for position, structure in enumerate(structures):
            try:
                crystals.append(read_crystal(structure))
                positions.append(position)
            except (StructureError, StructureTypeError) as error:
                errors[position] = error
            if len(crystals) == BLOCK:
                convert()
        convert()
        graphs = parts[0] if len(parts) == 1 else CrystalGraphs.concatenate(parts)
        return graphs, dict(sorted(errors.items()))

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
            crystals: What :func:`crysxpp_mm.graph.crystal.read_crystal` takes out of structures.

        Returns:
            The graphs, in order, and the error of each remaining crystal by its position.
        """
        if not crystals:
            return CrystalGraphs.empty(), {}
        n_sites = np.array([len(crystal.positions) for crystal in crystals])
        bonds = find_bonds(
            np.stack([crystal.lattice for crystal in crystals]),
            np.stack([crystal.periodic for crystal in crystals]),
            n_sites,
            np.concatenate([crystal.positions for crystal in crystals]),
            BondRule(self.cutoff, self.max_neighbors, self.shell_tolerance),
        )
        if bonds.refused:
            errors: dict[int, Exception] = {
                row: _in_one_place(pair) for row, pair in bonds.refused.items()
            }
            kept = [row for row in range(len(crystals)) if row not in errors]
            return self.build([crystals[row] for row in kept])[0], errors
        return _join(crystals, n_sites, bonds), {}


def _in_one_place(pair: OnePlace) -> StructureError:
    return StructureError(
        f"sites {pair.first} and {pair.second} are in one place ({pair.distance:.2g} Angstrom "
        "apart); remove one of them, or describe a mixed site by partial occupancies "
        "(Structure.merge_sites helps)."
    )


def _join(crystals: Sequence[Crystal], n_sites: NDArray[np.int64], bonds: Bonds) -> CrystalGraphs:
    """The graphs of crystals and their bonds."""
    n_species = np.array([len(crystal.species_sites) for crystal in crystals])
    species = {
        name: np.concatenate([getattr(crystal, name) for crystal in crystals])
        for name in ("species_sites", "species_numbers", "occupancies")
    }
    return CrystalGraphs.trusted(
        atom_offsets=offsets_from_counts(n_sites),
        bond_offsets=offsets_from_counts(bonds.counts),
        species_offsets=offsets_from_counts(n_species),
        degrees=bonds.degrees,
        neighbors=bonds.neighbors,
        distances=bonds.distances.astype(np.float32),
        weights=bonds.weights,
        **species,
    )
