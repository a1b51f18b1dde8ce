"""The bonds of crystals by the rule of ``CrystalGraphConverter``: compiled, or with trees."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crysxpp_mm.graph.arrays import offsets_from_counts
from crysxpp_mm.graph.neighbors import NeighborPairs, crowded_pair, nearest_neighbors

MIN_DISTANCE = 0.01
"""Two sites closer than this (Angstrom) are in one place."""
ROOM = 24
"""Bonds a site that there is room for at first."""


class BondRule(NamedTuple):
    """Rule of the neighbours that are bonded, as ``CrystalGraphConverter`` is told."""

    cutoff: float
    max_neighbors: int
    tolerance: float


class OnePlace(NamedTuple):
    """Two sites that are closer than ``MIN_DISTANCE``."""

    first: int
    second: int
    distance: float


class Bonds(NamedTuple):
    """The bonds of one or more crystals, those of a site together and sorted by length."""

    degrees: NDArray[np.int32]  # (n_sites,)
    neighbors: NDArray[np.int32]  # (n_bonds,), counted within a crystal
    distances: NDArray[np.float64]  # (n_bonds,), Angstrom
    weights: NDArray[np.float32]  # (n_bonds,)
    counts: NDArray[np.int64]  # (n_crystals,), bonds of each crystal
    refused: dict[int, OnePlace]  # crystals without bonds, and why


@cache
def kernels() -> ModuleType | None:
    """The compiled loops; None where numba is not installed."""
    try:
        from crysxpp_mm.graph import kernels as compiled
    except ImportError:
        return None
    return compiled


def find_bonds(
    lattices: NDArray[np.float64],
    periodic: NDArray[np.int64],
    n_sites: NDArray[np.int64],
    positions: NDArray[np.float64],
    rule: BondRule,
) -> Bonds:
    """The bonds of each crystal.

    Args:
        lattices: Lattice vectors as rows, shape ``(n, 3, 3)``, Angstrom.
        periodic: Whether each crystal repeats along each vector, shape ``(n, 3)``.
        n_sites: Sites of each crystal, shape ``(n,)``.
        positions: Of all sites, inside the cells, shape ``(n_sites.sum(), 3)``, Angstrom.
        rule: Which neighbours are bonded.
    """
    offsets = offsets_from_counts(n_sites)
    loops = kernels()
    if loops is None:
        whole, crowded = _no_bonds(n_sites), np.ones(len(lattices), dtype=bool)
    else:
        whole, states = _compiled(loops, lattices, periodic, offsets, positions, rule)
        crowded = states == loops.CROWDED
    if not crowded.any():
        return whole
    parts = _parts(whole, offsets)
    for i in np.flatnonzero(crowded).tolist():
        own = slice(offsets[i], offsets[i + 1])
        parts[i] = _with_trees(lattices[i], periodic[i], positions[own], rule)
    return _joined(parts)


def _joined(parts: list[Bonds]) -> Bonds:
    """The bonds of crystals together."""
    return Bonds(
        np.concatenate([part.degrees for part in parts]),
        np.concatenate([part.neighbors for part in parts]),
        np.concatenate([part.distances for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.counts for part in parts]),
        {i: part.refused[0] for i, part in enumerate(parts) if part.refused},
    )


def _parts(whole: Bonds, offsets: NDArray[np.int64]) -> list[Bonds]:
    """The bonds of each crystal by itself."""
    ends = offsets_from_counts(whole.counts)
    parts = []
    for i in range(len(whole.counts)):
        some = slice(ends[i], ends[i + 1])
        arrays = (whole.neighbors[some], whole.distances[some], whole.weights[some])
        refused = {0: whole.refused[i]} if i in whole.refused else {}
        degrees = whole.degrees[offsets[i] : offsets[i + 1]]
        parts.append(Bonds(degrees, *arrays, whole.counts[i : i + 1], refused))
    return parts


def _compiled(
    loops: ModuleType,
    lattices: NDArray[np.float64],
    periodic: NDArray[np.int64],
    offsets: NDArray[np.int64],
    positions: NDArray[np.float64],
    rule: BondRule,
) -> tuple[Bonds, NDArray[np.int64]]:
    """The bonds of each crystal, and what became of it."""
    room = ROOM * max(1, rule.max_neighbors // 12) * len(positions)
    while True:
        degrees = np.zeros(len(positions), dtype=np.int32)
        neighbors = np.empty(room, dtype=np.int32)
        distances, weights = np.empty(room), np.empty(room, dtype=np.float32)
        states, counts = np.zeros((2, len(lattices)), dtype=np.int64)
        culprits = np.empty((len(lattices), 3))
        loops.find_bonds(
            lattices,
            periodic,
            offsets,
            positions,
            *rule,
            MIN_DISTANCE,
            degrees,
            neighbors,
            distances,
            weights,
            states,
            counts,
            culprits,
        )
        if not (states == loops.LACKS_ROOM).any():
            break
        room *= 2
    refused = {}
    for i in np.flatnonzero((states == loops.ONE_PLACE) | (states == loops.CROWDED)):
        degrees[offsets[i] : offsets[i + 1]] = 0
        if states[i] == loops.ONE_PLACE:
            first, second, distance = culprits[i].tolist()
            refused[int(i)] = OnePlace(int(first), int(second), distance)
    n = int(counts.sum())
    return Bonds(degrees, neighbors[:n], distances[:n], weights[:n], counts, refused), states


def _no_bonds(n_sites: NDArray[np.int64]) -> Bonds:
    empty = np.empty(0)
    return Bonds(
        np.zeros(int(n_sites.sum()), dtype=np.int32),
        empty.astype(np.int32),
        empty,
        empty.astype(np.float32),
        np.zeros(len(n_sites), dtype=np.int64),
        {},
    )


def _with_trees(
    lattice: NDArray[np.float64],
    periodic: NDArray[np.int64],
    positions: NDArray[np.float64],
    rule: BondRule,
) -> Bonds:
    """The bonds of one crystal."""
    pairs = crowded_pair(positions, MIN_DISTANCE) or nearest_neighbors(
        lattice, positions, periodic, **rule._asdict()
    )
    closest = int(pairs.distances.argmin()) if len(pairs.distances) else -1
    if closest >= 0 and pairs.distances[closest] < MIN_DISTANCE:
        pair = int(pairs.centers[closest]), int(pairs.neighbors[closest])
        return _no_bonds(np.array([len(positions)]))._replace(
            refused={0: OnePlace(*pair, float(pairs.distances[closest]))}
        )
    return _apply_rule(pairs, len(positions), rule)


def _apply_rule(pairs: NeighborPairs, n_sites: int, rule: BondRule) -> Bonds:
    """Those pairs, sorted by centre and distance, that are bonds, and their weights."""
    centers, neighbors, distances = pairs
    # Distance of the last wanted neighbour of every site; infinite where there are fewer.
    found = np.bincount(centers, minlength=n_sites)
    first = offsets_from_counts(found)[:-1]
    last = np.full(n_sites, np.inf)
    full = found >= rule.max_neighbors
    last[full] = distances[first[full] + rule.max_neighbors - 1]
    excess = distances - last[centers]
    keep = (excess <= rule.tolerance) & (distances <= rule.cutoff + rule.tolerance)
    centers, neighbors, distances = centers[keep], neighbors[keep], distances[keep]
    inside = excess[keep] < -rule.tolerance
    n_inside = np.bincount(centers[inside], minlength=n_sites)
    degrees = np.bincount(centers, minlength=n_sites)
    share = (rule.max_neighbors - n_inside) / np.maximum(degrees - n_inside, 1)
    weights = np.where(inside, 1.0, np.minimum(share, 1.0)[centers])
    return Bonds(
        degrees.astype(np.int32),
        neighbors.astype(np.int32),
        distances,
        weights.astype(np.float32),
        np.array([len(centers)]),
        {},
    )
