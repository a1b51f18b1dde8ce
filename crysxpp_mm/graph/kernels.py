"""The compiled loop that finds the bonds of many crystals; ``bonds`` says what it is for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from crysxpp_mm.compiled import compiled, inlined

FINE, ONE_PLACE, CROWDED, LACKS_ROOM = 0, 1, 2, 3
"""What became of a crystal: its bonds are written, two sites are in one place, a bin is too full,
the arrays hold too few bonds."""
CROWD = 512
"""Sites in one bin from which on a crystal is crowded."""
TARGET_NEIGHBORS = 20
"""Neighbours that the first guess of the radius aims for."""
GROWTH = 1.3
"""Factor by which the radius grows for a site that still lacks neighbours."""
LONG = 64
"""Neighbours from which on they are sorted by merging."""
SLACK = 1e-9
"""Rounding of fractional coordinates and of distances."""


@inlined
def _invert(matrix: Any, inverse: Any, heights: Any) -> Any:
    """Write the inverse of a lattice and its heights; return the volume."""
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        for n in range(3):
            p, q = (n + 1) % 3, (n + 2) % 3
            inverse[n, i] = matrix[j, p] * matrix[k, q] - matrix[j, q] * matrix[k, p]
    determinant = (
        matrix[0, 0] * inverse[0, 0] + matrix[0, 1] * inverse[1, 0] + matrix[0, 2] * inverse[2, 0]
    )
    for i in range(3):
        for n in range(3):
            inverse[n, i] /= determinant
        heights[i] = 1 / math.sqrt(inverse[0, i] ** 2 + inverse[1, i] ** 2 + inverse[2, i] ** 2)
    return abs(determinant)


@inlined
def _products(points: Any, matrix: Any) -> Any:
    """Points times a matrix of three rows."""
    products = np.empty(points.shape)
    for i in range(len(points)):
        for k in range(3):
            products[i, k] = (
                points[i, 0] * matrix[0, k]
                + points[i, 1] * matrix[1, k]
                + points[i, 2] * matrix[2, k]
            )
    return products


@inlined
def _choose_bins(n_sites: Any, volume: Any, heights: Any, bins: Any) -> None:
    """Write how many bins there are along each vector: about two sites a bin, none superfluous."""
    edge = (2 * volume / n_sites) ** (1 / 3)
    for k in range(3):
        bins[k] = max(1, min(int(heights[k] / edge), n_sites))
    while bins[0] * bins[1] * bins[2] > n_sites:
        largest = 0
        for k in range(1, 3):
            if bins[k] > bins[largest]:
                largest = k
        bins[largest] = (bins[largest] + 1) // 2


@inlined
def _bin_along(coordinate: Any, n_bins: Any) -> Any:
    """Index of a bin; sites outside a cell that does not repeat are in the outer ones."""
    return int(max(0.0, min(math.floor(coordinate * n_bins), n_bins - 1.0)))


@compiled
def _sort_into_bins(fractional: Any, bins: Any, starts: Any, order: Any, ranks: Any) -> Any:
    """Write where each bin starts, the sites in the order of the bins, and the rank of each in it.

    Returns:
        The most sites of a bin.
    """
    n_sites = len(fractional)
    places = np.empty(n_sites, np.int64)
    starts[:] = 0
    for i in range(n_sites):
        place = 0
        for k in range(3):
            place = place * bins[k] + _bin_along(fractional[i, k], bins[k])
        places[i] = place
        starts[place + 1] += 1
    most = 0
    for b in range(len(starts) - 1):
        most = max(most, starts[b + 1])
        starts[b + 1] += starts[b]
    filled = starts[:-1].copy()
    for i in range(n_sites):
        ranks[i] = filled[places[i]]
        order[ranks[i]] = i
        filled[places[i]] += 1
    return most


@inlined
def _insert(nearest: Any, count: Any, square: Any) -> None:
    """Keep the smallest squares in order; ``count`` of them are there already."""
    place = min(count, len(nearest) - 1)
    while place > 0 and nearest[place - 1] > square:
        nearest[place] = nearest[place - 1]
        place -= 1
    nearest[place] = square


@compiled
def _sort_by_square(squares: Any, sites: Any, count: Any) -> None:
    """Sort the first entries in place; equal ones keep their order."""
    if count > LONG:
        order = np.argsort(squares[:count], kind="mergesort")
        squares[:count] = squares[:count][order]
        sites[:count] = sites[:count][order]
        return
    for i in range(1, count):
        square, site = squares[i], sites[i]
        place = i
        while place > 0 and squares[place - 1] > square:
            squares[place] = squares[place - 1]
            sites[place] = sites[place - 1]
            place -= 1
        squares[place] = square
        sites[place] = site


@inlined
def _set_range(fractional: Any, reach: Any, repeats: Any, bins: Any, low: Any, high: Any) -> None:
    """Write the first and the last bin that a sphere touches along each vector."""
    for k in range(3):
        if repeats[k]:
            low[k] = math.floor((fractional[k] - reach[k]) * bins[k])
            high[k] = math.floor((fractional[k] + reach[k]) * bins[k])
        else:
            low[k] = _bin_along(fractional[k] - reach[k], bins[k])
            high[k] = _bin_along(fractional[k] + reach[k], bins[k])


@compiled
def _gather(  # noqa: C901 (one compiled loop; calls inside it would cost more than the rest)
    place: Any,
    radius: Any,
    tolerance: Any,
    lattice: Any,
    points: Any,
    bins: Any,
    starts: Any,
    low: Any,
    high: Any,
    nearest: Any,
    squares: Any,
    sites: Any,
) -> Any:
    """Find the neighbours of a point within ``radius``, those beyond the last shell left out.

    Their squared distances and places are written. (Arrays that are made anew here would be counted
    in the innermost loop, which takes longer than all the rest.)

    Returns:
        How many there are, -1 if more than the arrays hold, and the distance of the last that is
        wanted, infinite if there are fewer.
    """
    x0, y0, z0 = points[place, 0], points[place, 1], points[place, 2]
    count, n_nearest, wanted = 0, 0, len(nearest)
    limit, last = radius * radius * (1 + SLACK), math.inf
    for b0 in range(low[0], high[0] + 1):
        n0 = b0 // bins[0]
        for b1 in range(low[1], high[1] + 1):
            n1 = b1 // bins[1]
            row = ((b0 - n0 * bins[0]) * bins[1] + b1 - n1 * bins[1]) * bins[2]
            n2, b2 = low[2] // bins[2], low[2]
            while b2 <= high[2]:  # bins along the third vector, up to the end of the cell
                stop = min(high[2] + 1, (n2 + 1) * bins[2])
                first, end = starts[row + b2 - n2 * bins[2]], starts[row + stop - n2 * bins[2]]
                x = n0 * lattice[0, 0] + n1 * lattice[1, 0] + n2 * lattice[2, 0] - x0
                y = n0 * lattice[0, 1] + n1 * lattice[1, 1] + n2 * lattice[2, 1] - y0
                z = n0 * lattice[0, 2] + n1 * lattice[1, 2] + n2 * lattice[2, 2] - z0
                itself = place if n0 == 0 and n1 == 0 and n2 == 0 else -1
                b2, n2 = stop, n2 + 1
                for j in range(first, end):
                    dx, dy, dz = points[j, 0] + x, points[j, 1] + y, points[j, 2] + z
                    square = dx * dx + dy * dy + dz * dz
                    if square > limit or j == itself:
                        continue
                    if count == len(squares):
                        return -1, last
                    squares[count], sites[count] = square, j
                    count += 1
                    _insert(nearest, n_nearest, square)
                    if n_nearest < wanted:
                        n_nearest += 1
                    if n_nearest == wanted:
                        last = math.sqrt(nearest[wanted - 1])
                        limit = min(limit, (last + tolerance) * (last + tolerance) * (1 + SLACK))
    kept = 0
    for entry in range(count):  # some were found before the limit shrank
        if squares[entry] <= limit:
            squares[kept], sites[kept] = squares[entry], sites[entry]
            kept += 1
    return kept, last


@inlined
def _apply_rule(
    squares: Any,
    sites: Any,
    order: Any,
    last: Any,
    farthest: Any,
    tolerance: Any,
    max_neighbors: Any,
    neighbors: Any,
    distances: Any,
    weights: Any,
) -> Any:
    """Write the bonds of one site, sorted by length, and their weights; return how many."""
    degree, inside = 0, 0
    for entry in range(len(squares)):
        distance = math.sqrt(squares[entry])
        if distance > farthest or distance - last > tolerance:
            break
        neighbors[degree] = order[sites[entry]]
        distances[degree] = distance
        weights[degree] = 1.0
        degree += 1
        if distance - last < -tolerance:
            inside += 1
    for entry in range(inside, degree):
        weights[entry] = min(1.0, (max_neighbors - inside) / (degree - inside))
    return degree


@compiled
def _find_bonds_of_one(
    lattice: Any,
    repeats: Any,
    points: Any,
    cutoff: Any,
    max_neighbors: Any,
    tolerance: Any,
    min_distance: Any,
    degrees: Any,
    neighbors: Any,
    distances: Any,
    weights: Any,
    culprits: Any,
) -> Any:
    """Write the bonds of one crystal; return what became of it and how many there are."""
    n_sites, farthest = len(points), cutoff + tolerance
    inverse, heights, reach = np.empty((3, 3)), np.empty(3), np.empty(3)
    bins, low, high = np.empty(3, np.int64), np.empty(3, np.int64), np.empty(3, np.int64)
    nearest, squares, sites = np.empty(max_neighbors), np.empty(256), np.empty(256, np.int64)
    volume = _invert(lattice, inverse, heights)
    fractional = _products(points, inverse)
    _choose_bins(n_sites, volume, heights, bins)
    starts = np.empty(bins[0] * bins[1] * bins[2] + 1, np.int64)
    order, ranks = np.empty(n_sites, np.int64), np.empty(n_sites, np.int64)
    if _sort_into_bins(fractional, bins, starts, order, ranks) > CROWD:
        return CROWDED, 0
    points = points[order]
    wanted = TARGET_NEIGHBORS * max(1.0, max_neighbors / 12)
    guess = min(farthest, (wanted * volume / n_sites * 3 / (4 * math.pi)) ** (1 / 3))
    total = 0
    for i in range(n_sites):
        radius, count, last = guess / GROWTH, 0, math.inf
        while radius < farthest and last + tolerance > radius:
            radius = min(GROWTH * radius, farthest)
            for k in range(3):
                reach[k] = radius / heights[k] + SLACK
            _set_range(fractional[i], reach, repeats, bins, low, high)
            count, last = _gather(
                ranks[i],
                radius,
                tolerance,
                lattice,
                points,
                bins,
                starts,
                low,
                high,
                nearest,
                squares,
                sites,
            )
            if count < 0:  # again, with more room
                squares, sites = np.empty(2 * len(squares)), np.empty(2 * len(squares), np.int64)
                radius, last = radius / GROWTH, math.inf
        _sort_by_square(squares, sites, count)
        if count and squares[0] < min_distance * min_distance:
            culprits[0], culprits[1], culprits[2] = i, order[sites[0]], math.sqrt(squares[0])
            return ONE_PLACE, 0
        if total + count > len(neighbors):
            return LACKS_ROOM, 0
        degrees[i] = _apply_rule(
            squares[:count],
            sites,
            order,
            last,
            farthest,
            tolerance,
            max_neighbors,
            neighbors[total:],
            distances[total:],
            weights[total:],
        )
        total += degrees[i]
    return FINE, total


@compiled
def find_bonds(
    lattices: Any,
    periodic: Any,
    offsets: Any,
    positions: Any,
    cutoff: float,
    max_neighbors: int,
    tolerance: float,
    min_distance: float,
    degrees: Any,
    neighbors: Any,
    distances: Any,
    weights: Any,
    states: Any,
    counts: Any,
    culprits: Any,
) -> None:
    """Write the bonds of every crystal by the rule of ``CrystalGraphConverter``.

    Args:
        lattices: Lattice vectors as rows, shape ``(n, 3, 3)``, Angstrom.
        periodic: Whether each crystal repeats along each vector, shape ``(n, 3)``.
        offsets: Sites of crystal i are ``[i]`` to ``[i + 1]``, shape ``(n + 1,)``.
        positions: Inside the cells, shape ``(n_sites, 3)``, Angstrom.
        cutoff: As the converter has it.
        max_neighbors: As the converter has it.
        tolerance: As the converter has it.
        min_distance: Sites closer than this are in one place.
        degrees: Written: bonds of each site.
        neighbors: Written: the far site of each bond, counted within its crystal.
        distances: Written: length of each bond.
        weights: Written: weight of each bond.
        states: Written: what became of each crystal; only a fine one has bonds. Where the arrays
            lack room the loop ends.
        counts: Written: bonds of each crystal.
        culprits: Written: two sites in one place and their distance, shape ``(n, 3)``.
    """
    total = 0
    for crystal in range(len(lattices)):
        first, end = offsets[crystal], offsets[crystal + 1]
        states[crystal], counts[crystal] = _find_bonds_of_one(
            lattices[crystal],
            periodic[crystal],
            positions[first:end],
            cutoff,
            max_neighbors,
            tolerance,
            min_distance,
            degrees[first:end],
            neighbors[total:],
            distances[total:],
            weights[total:],
            culprits[crystal],
        )
        total += counts[crystal]
        if states[crystal] == LACKS_ROOM:
            return
