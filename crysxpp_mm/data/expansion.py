"""From the sites and the symmetry of a CIF to the crystal."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Element
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from crysxpp_mm.data.cif_sites import SYMBOLS, Sites, formula_mismatch, text_of
from crysxpp_mm.data.symmetry import SAME_SITE, Operations, Symmetry
from crysxpp_mm.elements import MAX_ATOMIC_NUMBER
from crysxpp_mm.errors import CrysXPPError, DataError
from crysxpp_mm.graph.crystal import Crystal, make_crystal
from crysxpp_mm.graph.neighbors import nearest_neighbors

MAX_OCCUPANCY = 1.05
"""Occupancies of a site that sum to more are an error; those past 1 are rescaled."""
ROUNDED = 5e-4
"""Occupancies of thirds sum to 1 within this; it is not worth a note."""
FEW = 64
"""Sites whose places are compared each with each."""
TOO_CLOSE = 0.6
"""A choice of the origin that puts atoms closer than this (Angstrom) is wrong."""
MAX_IMAGES = 1_000_000
"""Sites times operations of a file that are worked out."""
THIRDS = (1 / 3, 2 / 3)
"""Coordinates that are meant where a file has 0.3333 or 0.6667."""


class Reading(NamedTuple):
    """Content of a block of a CIF."""

    crystal: Crystal
    doubts: tuple[str, ...] = ()  # why it may not be what the file means
    notes: tuple[str, ...] = ()  # what was made of the file, where it is worth saying


def build_reading(
    lattice: NDArray[np.float64], sites: Sites, symmetry: Symmetry, formula: str
) -> Reading:
    """Apply the symmetry, merge sites in one place, and look at what came of it."""
    notes = [symmetry.note] if symmetry.note else []
    doubts = [*sites.doubts]
    if symmetry.doubt:
        doubts.append(symmetry.doubt)
    operations = symmetry.choices[0]
    if len(symmetry.choices) > 1 and not symmetry.doubt:
        likely = [
            choice for choice in symmetry.choices if _is_likely(lattice, sites, choice, formula)
        ]
        if len(likely) == 1:
            operations = likely[0]
            notes.append("of two origins of the space group the one was taken that fits the file")
        else:
            doubts.append(
                "the file names a space group with two origins, but neither the origin nor the "
                "operations"
            )
    crystal, _ = _expand(lattice, sites, operations, notes)
    if mismatch := formula_mismatch(formula, crystal):
        doubts.append(mismatch)
    return Reading(crystal, tuple(doubts), tuple(notes))


def _is_likely(
    lattice: NDArray[np.float64], sites: Sites, operations: Operations, formula: str
) -> bool:
    """Tell whether a choice of the origin fits multiplicities, formula and distances."""
    try:
        crystal, counts = _expand(lattice, sites, operations, [])
    except CrysXPPError:
        return False
    told = np.isfinite(sites.multiplicities) & (counts > 0)
    if (counts[told] != sites.multiplicities[told]).any() or formula_mismatch(formula, crystal):
        return False
    pairs = nearest_neighbors(
        crystal.lattice,
        crystal.positions,
        crystal.periodic,
        cutoff=TOO_CLOSE,
        max_neighbors=1,
        tolerance=SAME_SITE,
    )
    return not len(pairs.distances)


def _expand(
    lattice: NDArray[np.float64], sites: Sites, operations: Operations, notes: list[str]
) -> tuple[Crystal, NDArray[np.int64]]:
    """The crystal of sites under operations, and the number of images of each.

    Raises:
        DataError: occupancies of a site sum to more than ``MAX_OCCUPANCY``, or there are too many
            sites.
        StructureError: the crystal makes no sense.
    """
    periodic, counts = np.ones(3, dtype=np.int64), np.zeros(len(sites.labels), dtype=np.int64)
    if len(counts) * len(operations.rotations) > MAX_IMAGES:
        raise DataError(f"its sites have more than {MAX_IMAGES:,} images under its symmetry.")
    if not len(counts):
        return make_crystal(lattice, np.zeros((1, 3)), *_entries([], [], []), periodic), counts
    fractional = _ideal(sites.fractional)
    owners = _owners(fractional, operations)
    counts[owners] = 1
    if counts.all() and (sites.occupancies == 1).all() and len(operations.rotations) == 1:
        order = np.argsort(_ranks()[sites.numbers], kind="stable")
        numbers, shares = sites.numbers[order].astype(np.uint8), np.ones(len(order), np.float32)
        entries = np.arange(len(order), dtype=np.int32), numbers, shares
        return make_crystal(lattice, fractional[order], *entries, periodic), counts
    mixtures = _mixtures(sites, owners, notes)
    images = {row: _distinct(operations.images(fractional[row])) for row in mixtures}
    for row, found in images.items():
        counts[row] = len(found)
    return _of_mixtures(lattice, mixtures, images, periodic), counts


def _of_mixtures(
    lattice: NDArray[np.float64],
    mixtures: Mapping[int, Mapping[int, float]],
    images: Mapping[int, NDArray[np.float64]],
    periodic: NDArray[np.int64],
) -> Crystal:
    """The crystal of places, each with the shares of its elements."""
    rows = sorted(mixtures, key=lambda row: _mixture_key(mixtures[row]))
    species = [mixtures[row] for row in rows for _ in images[row]]
    return make_crystal(
        lattice,
        np.concatenate([images[row] for row in rows]),
        *_entries(
            [site for site, mixture in enumerate(species) for _ in mixture],
            [number for mixture in species for number in mixture],
            [share for mixture in species for share in mixture.values()],
        ),
        periodic,
    )


def _ideal(fractional: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates with thirds in place of what was rounded to four digits."""
    for third in THIRDS:
        near = np.abs(fractional / third - 1) <= SAME_SITE
        fractional = np.where(near, third, fractional)
    return fractional


def _owners(fractional: NDArray[np.float64], operations: Operations) -> NDArray[np.int64]:
    """The first row that is in the same place as each, or has an image there."""
    n = len(fractional)
    if len(operations.rotations) == 1 and n <= FEW:
        steps = fractional[:, None] - fractional[None]
        near = (np.abs(steps - np.rint(steps)) < SAME_SITE).all(axis=2)
        if np.count_nonzero(near) == n:
            return np.arange(n)
    places = fractional % 1 % 1
    images = (fractional @ np.swapaxes(operations.rotations, 1, 2)) + operations.translations[
        :, None
    ]
    _, others = cKDTree(places, boxsize=1).query(
        images.reshape(-1, 3) % 1 % 1, k=2, p=np.inf, distance_upper_bound=SAME_SITE
    )
    rows = np.tile(np.arange(n), len(operations.rotations))
    pairs = [(rows[near], others[near, k]) for k in (0, 1) if (near := others[:, k] < n).any()]
    first, second = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    if (first == second).all():
        return np.arange(n)
    links = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    _, component = connected_components(links, directed=False)
    _, starts, inverse = np.unique(component, return_index=True, return_inverse=True)
    owners: NDArray[np.int64] = starts[inverse]
    return owners


def _distinct(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Images inside the cell, each once."""
    images = images - np.floor(images)
    steps = images[:, None] - images[None]
    same = (np.abs(steps - np.rint(steps)) < SAME_SITE).all(axis=2)
    chosen: NDArray[np.float64] = images[same.argmax(axis=1) == np.arange(len(images))]
    return chosen


def _mixtures(
    sites: Sites, owners: NDArray[np.int64], notes: list[str]
) -> dict[int, dict[int, float]]:
    """The occupancy of each element on each place.

    Raises:
        DataError: they sum to more than ``MAX_OCCUPANCY``.
    """
    mixtures: dict[int, dict[int, float]] = {}
    rows: dict[int, list[int]] = {}
    for row, owner in enumerate(owners.tolist()):
        mixture = mixtures.setdefault(owner, {})
        rows.setdefault(owner, []).append(row)
        number = int(sites.numbers[row])
        mixture[number] = mixture.get(number, 0.0) + float(sites.occupancies[row])
    rescaled = []
    for owner, mixture in mixtures.items():
        total = sum(mixture.values())
        if total <= 1:
            continue
        labels = ", ".join(text_of(sites.labels[row]) for row in rows[owner][:5])
        if total > MAX_OCCUPANCY:
            raise DataError(
                f"the occupancies of site {labels} sum to {total:.4g}, which is more than 1."
            )
        if total > 1 + ROUNDED:
            rescaled.append(f"the occupancies of site {labels} sum to {total:.4g} and are rescaled")
        mixtures[owner] = {number: share / total for number, share in mixture.items()}
    notes += rescaled[:3] + ([f"so are those of {len(rescaled) - 3} more"] if rescaled[3:] else [])
    return mixtures


def _entries(
    sites: list[int], numbers: list[int], shares: list[float]
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float32]]:
    return (
        np.array(sites, dtype=np.int32),
        np.array(numbers, dtype=np.uint8),
        np.array(shares, dtype=np.float32),
    )


@lru_cache(maxsize=1)
def _electronegativities() -> list[float]:
    """By atomic number; past all others where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = [Element.from_Z(number).X for number in range(1, MAX_ATOMIC_NUMBER + 1)]
    return [0.0, *(10.0 if value != value else float(value) for value in values)]


@lru_cache(maxsize=1)
def _ranks() -> NDArray[np.int64]:
    """Place of each element in the order in which pymatgen sorts sites."""
    keys = [(value, SYMBOLS[z]) for z, value in enumerate(_electronegativities())]
    return np.argsort(np.array(sorted(range(len(keys)), key=keys.__getitem__)))


def _mixture_key(mixture: Mapping[int, float]) -> tuple[float, str]:
    """The order of mixed sites: by electronegativity, then by name."""
    total = sum(mixture.values())
    mean = sum(_electronegativities()[z] * share for z, share in mixture.items()) / total
    if list(mixture.values()) == [1.0]:
        return mean, SYMBOLS[next(iter(mixture))]
    return mean, ", ".join(sorted(f"{SYMBOLS[z]}:{share:.3g}" for z, share in mixture.items()))
