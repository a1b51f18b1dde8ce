"""The part of a structure that a graph needs, whatever form the structure comes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Composition, DummySpecies, Element, IStructure, Lattice, Structure

from crysxpp_mm.elements import MAX_ATOMIC_NUMBER
from crysxpp_mm.errors import (
    StructureError,
    StructureTypeError,
    UnknownElementError,
)
from crysxpp_mm.graph.neighbors import volume_and_heights

MIN_VOLUME_PER_SITE = 0.1
"""A cell with less room than this for each site (cubic Angstrom) has no volume to speak of."""
MIN_HEIGHT = 0.1
"""A reduced cell thinner than this (Angstrom) has no volume to speak of."""
SKEWED = 1.5
"""A cell thinner than this (Angstrom) is reduced, which makes it cheap to search."""
MAX_LENGTH = 1e7
"""Cells and coordinates larger than this (Angstrom, vectors) are taken for errors."""


@dataclass(frozen=True, eq=False, slots=True)
class Crystal:
    """The part of a structure that a graph needs: cell, positions (Angstrom), species.

    Attributes:
        lattice: Lattice vectors as rows, shape ``(3, 3)``, Angstrom.
        positions: Inside the cell along vectors that repeat, shape ``(n_sites, 3)``, Angstrom.
        periodic: Whether the crystal repeats along each vector, shape ``(3,)``.
        species_sites: Site of each species entry, shape ``(n_species,)``.
        species_numbers: Atomic number of each species entry, 1 to 100.
        occupancies: Occupancy of each species entry.
    """

    lattice: NDArray[np.float64]
    positions: NDArray[np.float64]
    periodic: NDArray[np.int64]
    species_sites: NDArray[np.int32]
    species_numbers: NDArray[np.uint8]
    occupancies: NDArray[np.float32]

    def __len__(self) -> int:
        """Number of sites."""
        return len(self.positions)

    @property
    def formula(self) -> str:
        """Elements and their amounts in the cell, as pymatgen writes them."""
        return formula_of(self.species_numbers, self.occupancies)

    def to_structure(self) -> Structure:
        """The crystal as a pymatgen Structure; sites that are vacant have no species."""
        species: list[dict[Element, float]] = [{} for _ in self.positions]
        for site, number, share in zip(
            self.species_sites.tolist(),
            self.species_numbers.tolist(),
            self.occupancies.tolist(),
            strict=True,
        ):
            species[site][Element.from_Z(number)] = share
        for mixture in species:
            total = sum(mixture.values())  # past 1 by the rounding of 32 bits
            if total > 1:
                mixture.update({element: share / total for element, share in mixture.items()})
        lattice = Lattice(self.lattice, pbc=tuple(bool(axis) for axis in self.periodic))  # type: ignore[arg-type]
        return Structure(lattice, species, self.positions, coords_are_cartesian=True)


def formula_of(numbers: NDArray[np.uint8], occupancies: NDArray[np.float32]) -> str:
    """The formula of species entries."""
    amounts = np.bincount(numbers, weights=occupancies, minlength=1)
    return Composition(
        {Element.from_Z(int(number)): amounts[number] for number in np.flatnonzero(amounts)}
    ).formula


def read_crystal(structure: Any) -> Crystal:
    """Check a structure and take out what a graph needs.

    Args:
        structure: A pymatgen Structure of any kind, its dictionary, an entry that has one
            (``ComputedStructureEntry``), ASE ``Atoms``, or a Crystal.

    Raises:
        StructureTypeError: it is something else; the message says what to call.
        UnknownElementError: a species is no element from 1 to 100.
        StructureError: no sites, vacancies only, numbers that are not finite, or a cell without
            volume.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> copper = Structure(Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])
        >>> read_crystal(copper).species_numbers
        array([29], dtype=uint8)
    """
    if isinstance(structure, Crystal):
        return structure
    structure = as_structure(structure)
    sites = structure.sites
    if not sites:
        raise StructureError("the structure has no sites.")
    return make_crystal(
        np.array(structure.lattice.matrix, dtype=np.float64, order="C"),
        np.array([site.frac_coords for site in sites], dtype=np.float64),
        *_species(structure),
        np.array(structure.lattice.pbc, dtype=np.int64),
    )


def make_crystal(
    lattice: NDArray[np.float64],
    fractional: NDArray[np.float64],
    species_sites: NDArray[np.int32],
    species_numbers: NDArray[np.uint8],
    occupancies: NDArray[np.float32],
    periodic: NDArray[np.int64],
) -> Crystal:
    """Check arrays, and put the crystal into a cell that is cheap to search.

    Args:
        lattice: Lattice vectors as rows, shape ``(3, 3)``, Angstrom.
        fractional: Fractional coordinates of the sites, shape ``(n_sites, 3)``.
        species_sites: As :class:`Crystal` has it.
        species_numbers: As :class:`Crystal` has it.
        occupancies: As :class:`Crystal` has it.
        periodic: As :class:`Crystal` has it.

    Raises:
        StructureError: as :func:`read_crystal`.
    """
    entries = species_sites, species_numbers, occupancies
    try:
        if not np.abs(lattice).max() <= MAX_LENGTH:
            raise StructureError(
                f"a lattice vector is {_what(lattice)}; check the cell parameters and their unit."
            )
        if not np.abs(fractional).max() <= MAX_LENGTH:
            bad = int(np.flatnonzero(~(np.abs(fractional) <= MAX_LENGTH).all(axis=1))[0])
            raise StructureError(
                f"the coordinates of site {bad} are {_what(fractional)}; correct or remove the "
                "site."
            )
        if not len(occupancies) or occupancies.max() <= 0:
            raise StructureError("every site is vacant; a crystal needs atoms.")
        lattice, fractional = _regular_cell(lattice, fractional, periodic)
    except StructureError as error:
        raise StructureError(f"{formula_of(*entries[1:]) or 'vacancies'}: {error}") from None
    return Crystal(lattice, fractional @ lattice, periodic, *entries)


def _what(numbers: NDArray[np.float64]) -> str:
    return f"beyond {MAX_LENGTH:g}" if np.isfinite(numbers).all() else "NaN or infinite"


def _regular_cell(
    lattice: NDArray[np.float64], fractional: NDArray[np.float64], periodic: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same crystal with sites inside and vectors that are not too skewed.

    Raises:
        StructureError: the cell has no volume to speak of.
    """
    volume, heights = volume_and_heights(lattice)
    if volume < MIN_VOLUME_PER_SITE * len(fractional):
        raise StructureError(
            f"the cell of {len(fractional)} sites has a volume of {volume:.3g} cubic Angstrom; "
            "check the lattice vectors and their unit."
        )
    if min(heights) < SKEWED and periodic.all():
        positions = fractional @ lattice
        lattice = np.array(Lattice(lattice).get_lll_reduced_lattice().matrix, order="C")
        if min(volume_and_heights(lattice)[1]) < MIN_HEIGHT:
            raise StructureError(
                f"the cell is thinner than {MIN_HEIGHT} Angstrom; check the lattice vectors and "
                "their unit."
            )
        fractional = positions @ np.linalg.inv(lattice)
    return lattice, fractional - np.floor(fractional) * periodic


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
            if not 0 <= occupancy <= 1.01:
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
    numbers: list[int] = []
    try:
        for site in structure.sites:
            species = site.species
            (kind,) = species
            if species.num_atoms != 1:
                return None
            numbers.append(kind.Z)
    except ValueError:  # several kinds share a site, or none is there
        return None
    if min(numbers) < 1 or max(numbers) > MAX_ATOMIC_NUMBER:
        return None
    return np.array(numbers, dtype=np.uint8)


# The forms in which structures come.


def count_sites(item: Any) -> int:
    """Sites of what stands for a structure; 1 for anything else.

    Example:
        >>> count_sites({"lattice": {}, "sites": [{}, {}]})
        2
    """
    if isinstance(item, IStructure | Crystal):
        return len(item)
    if isinstance(item, Mapping) and not isinstance(item, Composition):
        inner = item if "sites" in item else item.get("structure")
        sites = inner.get("sites") if isinstance(inner, Mapping) else None
        return len(sites) if isinstance(sites, list) else 1
    inner = getattr(item, "structure", item)
    known = isinstance(inner, IStructure) or hasattr(inner, "get_scaled_positions")
    return len(inner) if known else 1


def as_structure(item: Any) -> IStructure:
    """The pymatgen Structure of what stands for one.

    Raises:
        StructureTypeError: nothing does; the message says what to call.
        StructureError: a dictionary or ``Atoms`` describe no crystal.
    """
    if isinstance(item, IStructure):
        return item
    if isinstance(item, Crystal):
        return item.to_structure()
    if isinstance(item, Mapping) and not isinstance(item, Composition):
        return _from_dict(item)
    if isinstance(inner := getattr(item, "structure", None), IStructure):
        return inner
    if hasattr(item, "get_scaled_positions") and hasattr(item, "get_atomic_numbers"):
        return _from_atoms(item)
    raise StructureTypeError(
        f"expected a pymatgen Structure or its dictionary, got {_name(item)}; {_advice(item)}."
    )


def _from_dict(d: Mapping[str, Any]) -> IStructure:
    inner = d.get("structure")
    if isinstance(inner, Mapping) and not {"lattice", "sites"} <= set(d):
        d = inner  # an entry
    if "lattice" not in d or "sites" not in d:
        raise StructureTypeError(
            "expected a pymatgen Structure or the dictionary that Structure.as_dict makes, got a "
            f"dictionary with the keys {', '.join(map(repr, list(d)[:5])) or '(none)'}."
        )
    try:
        return Structure.from_dict(without_code(d))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise StructureError(
            f"the dictionary does not describe a Structure ({type(error).__name__}: {error})."
        ) from error


def without_code(d: Mapping[str, Any]) -> dict[str, Any]:
    """Take from the dictionary of a structure what a graph needs, and nothing that runs code.

    pymatgen hands the properties of sites to monty, which imports the modules that they name.
    """
    wanted = ("species", "abc", "xyz")
    sites = [
        {key: site[key] for key in wanted if key in site} if isinstance(site, Mapping) else site
        for site in d["sites"]
    ]
    return {"lattice": d["lattice"], "sites": sites}


def _from_atoms(atoms: Any) -> IStructure:
    """The Structure of ASE ``Atoms``; ASE itself is not needed."""
    if "occupancy" in getattr(atoms, "info", {}):
        raise StructureError(
            "the Atoms have partial occupancies, which ASE keeps aside; read the file with "
            "pymatgen (Structure.from_file)."
        )
    numbers = [int(number) for number in atoms.get_atomic_numbers()]
    if bad := [i for i, number in enumerate(numbers) if not 1 <= number <= MAX_ATOMIC_NUMBER]:
        raise UnknownElementError(
            f"site {bad[0]} of the Atoms has the atomic number {numbers[bad[0]]}; the elements 1 "
            f"to {MAX_ATOMIC_NUMBER} have node features. Replace or remove it."
        )
    cell = np.array(atoms.get_cell()[:], dtype=np.float64)
    if not cell.any(axis=1).all():
        raise StructureError(
            "the Atoms have no cell of three vectors; set one (atoms.center(vacuum=8) and "
            "atoms.pbc make a box)."
        )
    lattice = Lattice(cell, pbc=tuple(bool(axis) for axis in atoms.get_pbc()))  # type: ignore[arg-type]
    return Structure(
        lattice,
        [Element.from_Z(number) for number in numbers],
        atoms.get_positions(),
        coords_are_cartesian=True,
    )


def _name(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _advice(item: object) -> str:
    """Say what to call for an object that is not a structure."""
    if isinstance(item, PurePath):
        return "read the file (Structure.from_file)"
    if isinstance(item, bytes | bytearray):
        item = bytes(item[:1000]).decode(errors="replace")
    if not isinstance(item, str):
        return (
            "build a Structure with a lattice (a molecule can be put into a box with "
            "Molecule.get_boxed_structure)"
        )
    text = item.strip()
    return next(advice for is_such, advice in _TEXTS if is_such(text))


_TEXTS: tuple[tuple[Callable[[str], bool], str], ...] = (
    (
        lambda text: text.startswith(("{", "[")),
        "this is JSON text: json.loads makes the dictionary of it",
    ),
    (
        lambda text: "data_" in text and "_cell_length_a" in text,
        "this is the text of a CIF: Structure.from_str(text, fmt='cif') reads it",
    ),
    (
        lambda text: text.startswith("Full Formula"),
        "this is a Structure printed as text, which cannot be read back; keep the object",
    ),
    (
        lambda text: len(text.splitlines()) > 6,
        "if this is the text of a POSCAR, Structure.from_str(text, fmt='poscar') reads it",
    ),
    (
        lambda text: "\n" not in text and bool(PurePath(text).suffix or "POSCAR" in text),
        "if this is the name of a file, Structure.from_file(name) reads it",
    ),
    (lambda text: True, "build one with a lattice, species and coordinates"),
)
"""Kinds of texts, and what to call for them."""
