"""Numbers that a structure implies without any label: targets for the pretraining of CrysAE.

They are computed from all neighbours within ``CUTOFF``, more than the bonds of a crystal graph,
and do not depend on the choice of cell, origin, orientation or site order. Neighbours fade out
towards the cutoff, so that none comes or goes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from pymatgen.core import Element

from crysxpp_mm.elements import MAX_ATOMIC_NUMBER
from crysxpp_mm.errors import MissingDependencyError, SettingsError
from crysxpp_mm.graph.arrays import offsets_from_counts
from crysxpp_mm.graph.crystal import Crystal, read_crystal
from crysxpp_mm.graph.neighbors import volume_and_heights

Array = NDArray[np.float64]

SAME_PLACE = 1e-8
"""A point this close to a site (Angstrom) is the site itself."""
CUTOFF = 6.5
"""Farthest neighbour that a target knows, Angstrom."""
FADE = 1.0
"""Over this much before the cutoff neighbours fade out, Angstrom."""
ANGLE_NEIGHBORS = 14
"""Neighbours between which angles are measured."""
SHELL_TOLERANCE = 1e-4
"""Distances that differ by no more than this are equal, Angstrom."""
SOFTNESS = 0.37
"""Of the bond valence, Angstrom (Brown and Altermatt 1985)."""

WITHOUT_ELECTRONEGATIVITY = ("He", "Ne", "Ar")

DISTANCES = np.linspace(1.25, 6.0, 10)
DISTANCE_WIDTH = 0.45
COSINES = np.linspace(-1.0, 1.0, 10)
COSINE_WIDTH = 2 / 9


class SiteProperties(NamedTuple):
    """Of every site: its occupancy, and the means over what occupies it; zero for a vacancy."""

    occupancy: Array
    electronegativity: Array  # Pauling; 0 for He, Ne and Ar, which have none
    mass: Array  # u
    radius: Array  # covalent, Angstrom
    group: Array


class Surroundings(NamedTuple):
    """A crystal and the neighbours of its sites within ``CUTOFF``, nearest first."""

    sites: SiteProperties
    volume: float  # of the cell, cubic Angstrom
    offsets: NDArray[np.int64]  # (n_sites + 1,)
    centers: NDArray[np.int64]  # (n_pairs,)
    neighbors: NDArray[np.int64]  # (n_pairs,)
    distances: Array  # (n_pairs,), Angstrom
    vectors: Array  # (n_pairs, 3), Angstrom
    fade: Array  # (n_pairs,), share of each neighbour, 1 down to 0 at the cutoff


@dataclass(frozen=True, kw_only=True)
class PretextTarget:
    """Something to predict that the structure implies.

    Attributes:
        name: Unique name.
        function: From surroundings to numbers, shape ``(n_sites, size)``, or ``(size,)`` for a
            crystal.
        of: Whether it belongs to every site or to the crystal.
        size: How many numbers it is.
        unit: Their unit, empty if they have none.
    """

    name: str
    function: Callable[[Surroundings], Array]
    of: Literal["site", "crystal"]
    size: int = 1
    unit: str = ""


@cache
def compiled_loops() -> ModuleType:
    """The module of the compiled loops.

    Raises:
        MissingDependencyError: numba does not work here.
    """
    try:
        from crysxpp_mm.graph import target_kernels
    except ImportError as error:
        raise MissingDependencyError(
            f"pretext targets need numba, which cannot be used ({error}): pip install numba."
        ) from error
    return target_kernels


@cache
def element_numbers() -> Array:
    """Electronegativity, mass, radius and group of every element, row = atomic number.

    Berkelium to fermium have the radius of curium, the last that is known. Shape ``(101, 4)``.
    """
    table = np.zeros((MAX_ATOMIC_NUMBER + 1, 4))
    radii = CovalentRadius.radius
    for number in range(1, MAX_ATOMIC_NUMBER + 1):
        element = Element.from_Z(number)
        table[number] = (
            0.0 if element.symbol in WITHOUT_ELECTRONEGATIVITY else element.X,
            float(element.atomic_mass),
            radii.get(element.symbol, radii["Cm"]),
            element.group,
        )
    return table


def site_properties(crystal: Crystal) -> SiteProperties:
    """The properties of the sites of a crystal."""
    n_sites = len(crystal.positions)
    occupancy = np.zeros(n_sites)
    np.add.at(occupancy, crystal.species_sites, crystal.occupancies)
    sums = np.zeros((n_sites, 4))
    rows = element_numbers()[crystal.species_numbers] * crystal.occupancies[:, None]
    np.add.at(sums, crystal.species_sites, rows)
    means = sums / np.where(occupancy > 0, occupancy, 1.0)[:, None]
    return SiteProperties(occupancy, *means.T)


def surroundings(structure: Any) -> Surroundings:
    """Find the neighbours of the sites of a structure, or of a ``Crystal``.

    Raises:
        StructureTypeError, UnknownElementError, StructureError: as
            ``CrystalGraphConverter.convert``.
    """
    crystal = structure if isinstance(structure, Crystal) else read_crystal(structure)
    loops = compiled_loops()
    volume, heights = volume_and_heights(crystal.lattice)
    reach = [
        np.arange(-n, n + 1)
        for n in (
            int(CUTOFF / height + 1) if periodic else 0
            for height, periodic in zip(heights, crystal.periodic, strict=True)
        )
    ]
    images = np.stack(np.meshgrid(*reach, indexing="ij"), axis=-1).reshape(-1, 3)
    where = (crystal.positions, images @ crystal.lattice, CUTOFF, SAME_PLACE)
    counts = np.zeros(len(crystal.positions), dtype=np.int64)
    loops.count_neighbors(*where, counts)
    total = int(counts.sum())
    neighbors, distances = np.empty(total, dtype=np.int64), np.empty(total)
    vectors = np.empty((total, 3))
    loops.list_neighbors(*where, neighbors, distances, vectors)
    centers = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((distances, centers))
    distances = distances[order]
    outer = np.clip((distances - (CUTOFF - FADE)) / FADE, 0.0, 1.0)
    return Surroundings(
        sites=site_properties(crystal),
        volume=volume,
        offsets=offsets_from_counts(counts),
        centers=centers,
        neighbors=neighbors[order],
        distances=distances,
        vectors=vectors[order],
        fade=0.5 * (1.0 + np.cos(np.pi * outer)),
    )


def _radial(around: Surroundings, weight: str = "") -> Array:
    """Gaussians of the distances of all neighbours, each times a property of the neighbour."""
    weights = around.sites.occupancy * (getattr(around.sites, weight) if weight else 1.0)
    sums = np.zeros((len(weights), 1, len(DISTANCES)))
    compiled_loops().radial_sums(
        around.offsets,
        around.neighbors,
        around.distances,
        around.fade,
        np.ascontiguousarray(weights[:, None]),
        DISTANCES,
        DISTANCE_WIDTH,
        sums,
    )
    return sums[:, 0]


def _angular(around: Surroundings, weight: str = "") -> Array:
    """Mean Gaussians of the cosines between the nearest neighbours, times their properties."""
    sites = around.sites
    weights = getattr(sites, weight) if weight else np.ones(len(sites.occupancy))
    means = np.zeros((len(weights), 1, len(COSINES)))
    compiled_loops().angular_means(
        around.offsets,
        around.neighbors,
        around.distances,
        around.vectors,
        nearest_shares(around) * sites.occupancy[around.neighbors],
        np.ascontiguousarray(weights[:, None]),
        COSINES,
        COSINE_WIDTH,
        means,
    )
    return means[:, 0]


def nearest_shares(around: Surroundings) -> Array:
    """Share of each neighbour among the ``ANGLE_NEIGHBORS`` nearest of its site, ``(n_pairs,)``.

    As in a crystal graph, a shell of equal distance that the last of them falls into is kept
    whole and shares the places left. The shares fade out towards the cutoff.
    """
    counts = np.diff(around.offsets)
    last = np.full(len(counts), np.inf)
    full = counts >= ANGLE_NEIGHBORS
    last[full] = around.distances[around.offsets[:-1][full] + ANGLE_NEIGHBORS - 1]
    excess = around.distances - last[around.centers]
    inside = excess < -SHELL_TOLERANCE
    shell = ~inside & (excess <= SHELL_TOLERANCE)
    n_inside = np.bincount(around.centers[inside], minlength=len(counts))
    n_shell = np.bincount(around.centers[shell], minlength=len(counts))
    places = (ANGLE_NEIGHBORS - n_inside) / np.maximum(n_shell, 1)
    return np.where(inside, 1.0, np.where(shell, places[around.centers], 0.0)) * around.fade


def _valences(around: Surroundings) -> Array:
    """Valence of each bond after its length and the radii of its ends, ``(n_pairs,)``."""
    radius, occupancy = around.sites.radius, around.sites.occupancy
    ends = radius[around.centers] + radius[around.neighbors]
    valences = np.exp((ends - around.distances) / SOFTNESS) * around.fade
    present: Array = (occupancy[around.centers] > 0) * occupancy[around.neighbors]
    return valences * present


def _summed(around: Surroundings, values: Array) -> Array:
    """Sums over the neighbours of every site, ``(n_sites, 1)``."""
    sums = np.zeros((len(around.offsets) - 1, 1))
    np.add.at(sums[:, 0], around.centers, values)
    return sums


def _valence_sum(around: Surroundings) -> Array:
    return _summed(around, _valences(around))


def _einstein_frequency(around: Surroundings) -> Array:
    """Root of the bond valences over the reduced masses of their bonds."""
    mass = np.where(around.sites.mass > 0, around.sites.mass, np.inf)
    return np.sqrt(
        _summed(around, _valences(around) * (1 / mass[around.centers] + 1 / mass[around.neighbors]))
    )


def _least(around: Surroundings, values: Array, start: float) -> Array:
    least = np.full(len(around.offsets) - 1, start)
    np.minimum.at(least, around.centers, values)
    return least[:, None]


def _nearest(around: Surroundings) -> Array:
    return _least(around, around.distances, CUTOFF)


def _relative_nearest(around: Surroundings) -> Array:
    """The least distance over the sum of the radii; at most 10."""
    radius = around.sites.radius
    ends = radius[around.centers] + radius[around.neighbors]
    return _least(around, around.distances / np.maximum(ends, 0.1), 10.0)


def _property(around: Surroundings, name: str) -> Array:
    values: Array = getattr(around.sites, name)[:, None]
    return values


def _volume_per_site(around: Surroundings) -> Array:
    return np.array([around.volume / len(around.sites.occupancy)])


def _density(around: Surroundings) -> Array:
    return np.array([(around.sites.occupancy * around.sites.mass).sum() / around.volume])


def _packing(around: Surroundings) -> Array:
    spheres = 4 / 3 * np.pi * around.sites.radius**3
    return np.array([(around.sites.occupancy * spheres).sum() / around.volume])


def _registry() -> dict[str, PretextTarget]:
    def weighted(kind: str, function: Any, names: Sequence[str]) -> list[PretextTarget]:
        return [
            PretextTarget(
                name=f"{kind}, {name}" if name else kind,
                function=partial(function, weight=name),
                of="site",
                size=10,
                unit={"mass": "u", "radius": "Angstrom"}.get(name, ""),
            )
            for name in names
        ]

    targets = [
        *weighted("distances", _radial, ("", "electronegativity", "mass", "radius", "group")),
        *weighted("angles", _angular, ("", "electronegativity")),
        PretextTarget(name="valence sum", function=_valence_sum, of="site"),
        PretextTarget(
            name="Einstein frequency", function=_einstein_frequency, of="site", unit="u^-1/2"
        ),
        PretextTarget(name="nearest distance", function=_nearest, of="site", unit="Angstrom"),
        PretextTarget(name="nearest distance over radii", function=_relative_nearest, of="site"),
        PretextTarget(name="mass", function=partial(_property, name="mass"), of="site", unit="u"),
        PretextTarget(
            name="radius", function=partial(_property, name="radius"), of="site", unit="Angstrom"
        ),
        PretextTarget(
            name="volume per site", function=_volume_per_site, of="crystal", unit="Angstrom^3"
        ),
        PretextTarget(name="density", function=_density, of="crystal", unit="u/Angstrom^3"),
        PretextTarget(name="packing", function=_packing, of="crystal"),
    ]
    return {target.name: target for target in targets}


TARGETS = _registry()
"""Every pretext target by name."""
SITE_FINGERPRINT = tuple(name for name, target in TARGETS.items() if target.of == "site")
"""The 76 numbers of a site."""


def find_targets(names: Iterable[str], of: Literal["site", "crystal"]) -> list[PretextTarget]:
    """Those of the named targets that belong to sites, or to crystals, in the order of the names.

    Raises:
        SettingsError: there is no such target, or one is named twice.
    """
    names = list(names)
    if unknown := [name for name in names if name not in TARGETS]:
        raise SettingsError(
            f"there is no pretext target {unknown[0]!r}; there are {', '.join(TARGETS)}."
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise SettingsError(f"the pretext target {twice[0]!r} is named twice.")
    return [TARGETS[name] for name in names if TARGETS[name].of == of]


def site_targets(around: Surroundings, names: Sequence[str]) -> Array:
    """The named targets of sites side by side, shape ``(n_sites, n_columns)``.

    >>> from pymatgen.core import Lattice, Structure
    >>> silver = Structure(Lattice.cubic(4.0), ["Ag"] * 2, [[0, 0, 0], [0.5, 0.5, 0.5]])
    >>> site_targets(surroundings(silver), ["nearest distance", "radius"]).round(3).tolist()
    [[3.464, 1.45], [3.464, 1.45]]
    """
    columns = [target.function(around) for target in find_targets(names, "site")]
    return np.hstack(columns) if columns else np.empty((len(around.sites.occupancy), 0))


def crystal_targets(around: Surroundings, names: Sequence[str]) -> Array:
    """The named targets of the crystal, shape ``(n_columns,)``."""
    numbers = [target.function(around) for target in find_targets(names, "crystal")]
    return np.concatenate(numbers) if numbers else np.empty(0)
