"""Nearest neighbours in a periodic crystal, found in trees: without numba, and in crowds.

The radius of the search adapts to the density, so that neither atoms far apart nor atoms crowded
together cost more than a constant for each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

TARGET_NEIGHBORS = 20
"""Neighbours that the first guess of the radius aims for."""
GROWTH = 1.6
"""Factor by which the radius grows for sites that still lack neighbours."""
SLACK = 1e-9
"""Rounding, relative to a radius."""
SAMPLE = 64
"""Sites that tell how crowded the sites of a crystal are."""
QUERY = 4096
"""Sites whose neighbours are looked up at a time."""


class NeighborPairs(NamedTuple):
    """Directed pairs."""

    centers: NDArray[np.int64]  # (n_pairs,)
    neighbors: NDArray[np.int64]  # (n_pairs,)
    distances: NDArray[np.float64]  # (n_pairs,), Angstrom


class _Images(NamedTuple):
    """Sites and those of their images that may be neighbours."""

    points: NDArray[np.float64]
    sites: NDArray[np.int64]
    home: NDArray[np.bool_]  # whether a point is the site itself, not an image


def volume_and_heights(lattice: NDArray[np.float64]) -> tuple[float, list[float]]:
    """Volume of a cell and the distances between its opposite faces.

    In plain numbers, which are quicker than arrays of three.

    Args:
        lattice: Lattice vectors as rows, shape ``(3, 3)``, Angstrom.

    Returns:
        Cubic Angstrom; three heights in Angstrom, 0 for a cell without volume.

    Example:
        >>> volume_and_heights(np.diag([2.0, 3.0, 4.0]))
        (24.0, [2.0, 3.0, 4.0])
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
) -> NeighborPairs:
    """All neighbours closer than ``radius``, periodic images included, by centre.

    Args:
        lattice: Lattice vectors as rows, shape ``(3, 3)``, Angstrom.
        positions: Cartesian positions, shape ``(n_atoms, 3)``, Angstrom.
        periodic: Whether the crystal repeats along each vector, shape ``(3,)``.
        radius: Angstrom.
    """
    images = _images(lattice, positions, periodic, radius, positions)
    found = cKDTree(images.points).query_ball_point(positions, radius)
    counts = np.array([len(points) for points in found], dtype=np.int64)
    centers = np.repeat(np.arange(len(positions)), counts)
    points = np.concatenate([np.asarray(entry, dtype=np.int64) for entry in found])
    distances = np.linalg.norm(images.points[points] - positions[centers], axis=1)
    keep = ~(images.home[points] & (images.sites[points] == centers))
    return NeighborPairs(centers[keep], images.sites[points][keep], distances[keep])


def _images(
    lattice: NDArray[np.float64],
    positions: NDArray[np.float64],
    periodic: NDArray[np.int64],
    radius: float,
    centers: NDArray[np.float64],
) -> _Images:
    """Those sites and images that lie within ``radius`` of the box around some positions."""
    inverse = np.linalg.inv(lattice)
    fractional = centers @ inverse
    _, heights = volume_and_heights(lattice)
    places, sites = positions @ inverse, np.arange(len(positions))
    home = np.ones(len(positions), dtype=bool)
    for k in np.flatnonzero(periodic):
        reach = radius / heights[k] * (1 + SLACK) + SLACK
        low, high = fractional[:, k].min() - reach, fractional[:, k].max() + reach
        first = np.ceil(low - places[:, k]).astype(np.int64)
        counts = np.floor(high - places[:, k]).astype(np.int64) - first + 1
        rows = np.repeat(np.arange(len(places)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        shifts = first[rows] + within
        places, sites, home = places[rows], sites[rows], home[rows] & (shifts == 0)
        places[:, k] += shifts
    points = places @ lattice
    points[home] = positions[sites[home]]
    return _Images(points, sites, home)


def crowded_pair(positions: NDArray[np.float64], distance: float) -> NeighborPairs | None:
    """Two sites closer than ``distance``, where many are: those that share a small cube."""
    cubes = np.floor(positions / (distance / 2)).astype(np.int64)  # its diagonal is shorter
    _, first, inverse = np.unique(cubes, axis=0, return_index=True, return_inverse=True)
    others = np.flatnonzero(first[inverse.reshape(-1)] != np.arange(len(positions)))
    if not len(others):
        return None
    pair = np.array([others[0], first[inverse.reshape(-1)[others[0]]]])
    length = np.linalg.norm(positions[pair[0]] - positions[pair[1]])
    return NeighborPairs(pair[:1], pair[1:], np.array([length]))


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

    Returns:
        Pairs by centre and, for one centre, by distance.
    """
    farthest = cutoff + tolerance
    volume, _ = volume_and_heights(lattice)
    wanted = TARGET_NEIGHBORS * max(1.0, max_neighbors / 12)
    radius = min(farthest, (wanted * volume / len(positions) * 3 / (4 * np.pi)) ** (1 / 3))
    some = positions[:: -(-len(positions) // SAMPLE)]
    lengths, _ = cKDTree(positions).query(some, k=[max_neighbors + 1])
    radius = min(radius, GROWTH * float(np.median(lengths)) + 3 * tolerance)
    lacking = np.arange(len(positions))
    parts: list[NeighborPairs] = []
    while len(lacking):
        images = _images(lattice, positions, periodic, radius, positions[lacking])
        tree = cKDTree(images.points)
        left = []
        for start in range(0, len(lacking), QUERY):
            centers = lacking[start : start + QUERY]
            pairs, short = _query(
                tree, images, positions, centers, radius, max_neighbors, tolerance
            )
            done = np.ones(len(centers), dtype=bool) if radius >= farthest else ~short
            left.append(centers[~done])
            keep = done[np.searchsorted(centers, pairs.centers)]
            parts.append(NeighborPairs(*(array[keep] for array in pairs)))
        lacking = np.concatenate(left)
        radius = min(GROWTH * radius, farthest)
    centers, neighbors, distances = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(centers, kind="stable")
    return NeighborPairs(centers[order], neighbors[order], distances[order])


def _query(
    tree: cKDTree,
    images: _Images,
    positions: NDArray[np.float64],
    centers: NDArray[np.int64],
    radius: float,
    max_neighbors: int,
    tolerance: float,
) -> tuple[NeighborPairs, NDArray[np.bool_]]:
    """Neighbours of some sites within ``radius``, and which of them may have more beyond."""
    parts: list[NeighborPairs] = []
    short = np.zeros(len(centers), dtype=bool)
    rows, many = np.arange(len(centers)), max_neighbors + 12
    while len(rows):
        many = min(many, tree.n)
        lengths, points = tree.query(
            positions[centers[rows]], k=np.arange(1, many + 1), distance_upper_bound=radius
        )
        found = np.isfinite(lengths)
        points[~found] = 0
        itself = found & images.home[points] & (images.sites[points] == centers[rows][:, None])
        found &= ~itself
        lengths[itself] = -1.0  # sorts before all others
        order = np.argsort(lengths, axis=1, kind="stable")[:, 1:]
        lengths, points, found = (
            np.take_along_axis(array, order, axis=1) for array in (lengths, points, found)
        )
        last = np.full(len(rows), np.inf)
        if lengths.shape[1] >= max_neighbors:
            last = lengths[:, max_neighbors - 1]
        complete = ~found.all(axis=1) if lengths.shape[1] else np.ones(len(rows), dtype=bool)
        if lengths.shape[1]:
            complete |= lengths[:, -1] > last + tolerance
        complete |= np.full(len(rows), many == tree.n)
        short[rows] = last + tolerance > radius
        taken = found & complete[:, None]
        parts.append(
            NeighborPairs(
                np.repeat(centers[rows], taken.sum(axis=1)),
                images.sites[points[taken]],
                lengths[taken],
            )
        )
        rows, many = rows[~complete], 2 * many
    return NeighborPairs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))), short
