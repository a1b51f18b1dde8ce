"""Nearest neighbours in a periodic crystal, found with a radius that adapts to the density."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pymatgen.optimization.neighbors import find_points_in_spheres

TARGET_NEIGHBORS = 20
"""Neighbours that the first guess of the radius aims for."""
GROWTH = 1.3
"""Factor by which the radius grows for sites that still lack neighbours."""
SAME_PLACE = 1e-8
"""A point this close to a site (Angstrom) is the site itself."""
PADDING = 8
"""Sorting in rows of equal length is worth it up to this many places a pair."""


class NeighborPairs(NamedTuple):
    """Directed pairs, in no particular order."""

    centers: NDArray[np.int64]  # (n_pairs,)
    neighbors: NDArray[np.int64]  # (n_pairs,)
    distances: NDArray[np.float64]  # (n_pairs,), Angstrom


def volume_and_heights(lattice: NDArray[np.float64]) -> tuple[float, list[float]]:
    """Volume of a cell and the distances between its opposite faces.

    In plain numbers, which are quicker than arrays of three.

    Args:
        lattice: Lattice vectors as rows, shape ``(3, 3)``, Angstrom.

    Returns:
        Cubic Angstrom; three heights in Angstrom, 0 for a cell without volume.
    """
    a, b, c = lattice.tolist()
    normals = [
        (v[1] * w[2] - v[2] * w[1], v[2] * w[0] - v[0] * w[2], v[0] * w[1] - v[1] * w[0])
        for v, w in ((b, c), (c, a), (a, b))
    ]
    volume = abs(sum(x * y for x, y in zip(a, normals[0], strict=True)))
    return volume, [volume / area if (area := math.hypot(*n)) else 0.0 for n in normals]


def neighbors_within(
    lattice: NDArray[np.float64],
    positions: NDArray[np.float64],
    periodic: NDArray[np.int64],
    radius: float,
    centers: NDArray[np.int64] | None = None,
) -> NeighborPairs:
    """All neighbours closer than ``radius``, periodic images included.

    Args:
        lattice: Lattice vectors as rows, shape ``(3, 3)``, Angstrom.
        positions: Cartesian positions, shape ``(n_atoms, 3)``, Angstrom.
        periodic: Whether the crystal repeats along each vector, shape ``(3,)``.
        radius: Angstrom.
        centers: Sites whose neighbours are wanted; all of them if None.
    """
    wanted = positions if centers is None else positions[centers]
    found, neighbors, images, distances = find_points_in_spheres(
        positions, wanted, r=radius, pbc=periodic, lattice=lattice, tol=SAME_PLACE
    )
    if centers is not None:
        found = centers[found]
    # A site is no neighbour of itself, but its images are, and so is another site in its place.
    keep = distances >= SAME_PLACE
    here = np.flatnonzero(~keep)
    keep[here] = (found[here] != neighbors[here]) | images[here].any(axis=1)
    return _select(NeighborPairs(found, neighbors, distances), keep)


def _select(pairs: NeighborPairs, keep: NDArray[np.bool_]) -> NeighborPairs:
    return NeighborPairs(pairs.centers[keep], pairs.neighbors[keep], pairs.distances[keep])


def nearest_neighbors(
    lattice: NDArray[np.float64],
    positions: NDArray[np.float64],
    periodic: NDArray[np.int64],
    *,
    cutoff: float,
    max_neighbors: int,
    tolerance: float,
) -> NeighborPairs:
    """Neighbours among which every site has its nearest ``max_neighbors``, shells complete.

    The radius starts where the density promises about twenty neighbours and grows only for the
    sites that lack some, so a few neighbours beyond the wanted ones come along.

    Args:
        lattice: Lattice vectors as rows, shape ``(3, 3)``, Angstrom.
        positions: Cartesian positions, shape ``(n_atoms, 3)``, Angstrom.
        periodic: Whether the crystal repeats along each vector, shape ``(3,)``.
        cutoff: No neighbour is farther than this plus ``tolerance``, Angstrom.
        max_neighbors: Neighbours that each site needs, where the cutoff has as many.
        tolerance: Distances that differ by at most this much count as equal, Angstrom.
    """
    n_atoms = len(positions)
    farthest = cutoff + tolerance
    volume, _ = volume_and_heights(lattice)
    wanted = TARGET_NEIGHBORS * max(1.0, max_neighbors / 12)
    radius = (wanted * volume / n_atoms * 3 / (4 * np.pi)) ** (1 / 3)
    radius = min(radius, farthest)

    parts: list[NeighborPairs] = []
    centers: NDArray[np.int64] | None = None
    while True:
        pairs = neighbors_within(lattice, positions, periodic, radius, centers)
        if radius >= farthest:
            parts.append(pairs)
            break
        # Complete where the last wanted shell ends well inside the sphere.
        inside = pairs.distances <= radius - 3 * tolerance
        counts = np.bincount(pairs.centers[inside], minlength=n_atoms)
        lacking = counts < max_neighbors
        if centers is not None:
            lacking &= np.bincount(centers, minlength=n_atoms) > 0
        if not lacking.any():
            parts.append(pairs)
            break
        keep = ~lacking[pairs.centers]
        parts.append(_select(pairs, keep))
        centers = np.flatnonzero(lacking)
        radius = min(GROWTH * radius, farthest)
    if len(parts) == 1:
        return parts[0]
    return NeighborPairs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def sorted_pairs(
    centers: NDArray[np.int64], neighbors: NDArray[np.int64], distances: NDArray[np.float64]
) -> NeighborPairs:
    """Pairs by centre and, for one centre, by distance; equal ones keep their order.

    The distances of every centre are sorted as a row of a table, which takes a third of the time
    of ``lexsort`` for the same order.

    Args:
        centers: Shape ``(n_pairs,)``.
        neighbors: Shape ``(n_pairs,)``.
        distances: Shape ``(n_pairs,)``, Angstrom, finite.
    """
    counts = np.bincount(centers)
    width = int(counts.max(initial=0))
    if width * len(counts) > PADDING * len(centers):
        order = np.lexsort((distances, centers))
    else:
        grouped = np.argsort(centers, kind="stable")
        taken = np.arange(width) < counts[:, None]
        rows = np.full((len(counts), width), np.inf)
        rows[taken] = distances[grouped]
        places = np.argsort(rows, axis=1, kind="stable")
        places += (np.cumsum(counts) - counts)[:, None]
        order = grouped[places[taken]]
    return NeighborPairs(centers[order], neighbors[order], distances[order])
