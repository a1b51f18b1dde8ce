"""Compiled loops over the surroundings of sites, in float64; ``targets`` says what they are for.

Neighbours of a site follow each other, sorted by distance; those of site ``i`` are the entries
``offsets[i]`` to ``offsets[i + 1]`` of ``neighbors``, ``distances`` and ``vectors``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from crysxpp_mm.compiled import compiled


@compiled
def count_neighbors(
    positions: Any, shifts: Any, cutoff: float, same_place: float, counts: Any
) -> None:
    """Add to ``counts`` the neighbours of every site within ``cutoff``, all images included."""
    for i in range(len(positions)):
        for s in range(len(shifts)):
            for j in range(len(positions)):
                square = 0.0
                for k in range(3):
                    step = positions[j, k] + shifts[s, k] - positions[i, k]
                    square += step * step
                if square <= cutoff * cutoff and square >= same_place * same_place:
                    counts[i] += 1


@compiled
def list_neighbors(
    positions: Any,
    shifts: Any,
    cutoff: float,
    same_place: float,
    neighbors: Any,
    distances: Any,
    vectors: Any,
) -> None:
    """Write the neighbours that ``count_neighbors`` counts, site by site, in no order."""
    row = 0
    step = np.empty(3)
    for i in range(len(positions)):
        for s in range(len(shifts)):
            for j in range(len(positions)):
                square = 0.0
                for k in range(3):
                    step[k] = positions[j, k] + shifts[s, k] - positions[i, k]
                    square += step[k] * step[k]
                if square <= cutoff * cutoff and square >= same_place * same_place:
                    neighbors[row] = j
                    distances[row] = math.sqrt(square)
                    vectors[row] = step
                    row += 1


@compiled
def radial_sums(
    offsets: Any,
    neighbors: Any,
    distances: Any,
    fade: Any,
    weights: Any,
    centers: Any,
    width: float,
    sums: Any,
) -> None:
    """Add Gaussians of the distances to ``sums``, ``(n_sites, n_weights, n_gaussians)``.

    Args:
        offsets: As the module says.
        neighbors: As the module says.
        distances: As the module says.
        fade: Share of every neighbour, shape ``(n_pairs,)``.
        weights: Of the sites as neighbours, shape ``(n_sites, n_weights)``.
        centers: Of the Gaussians, Angstrom.
        width: Their standard deviation, Angstrom.
        sums: What is added to.
    """
    for i in range(len(offsets) - 1):
        for row in range(offsets[i], offsets[i + 1]):
            j = neighbors[row]
            for g in range(len(centers)):
                away = (distances[row] - centers[g]) / width
                value = fade[row] * math.exp(-0.5 * away * away)
                for w in range(weights.shape[1]):
                    sums[i, w, g] += weights[j, w] * value


@compiled
def angular_means(  # noqa: C901 (one compiled loop)
    offsets: Any,
    neighbors: Any,
    distances: Any,
    vectors: Any,
    shares: Any,
    weights: Any,
    centers: Any,
    width: float,
    means: Any,
) -> None:
    """Write mean Gaussians of the cosines between neighbours to ``means``.

    A pair counts as the product of the shares of its two neighbours; with every column of
    ``weights`` its Gaussians are multiplied by the weights of both. Neighbours of no share end
    the list of a site.

    Args:
        offsets: As the module says.
        neighbors: As the module says.
        distances: As the module says.
        vectors: As the module says.
        shares: Of every neighbour, shape ``(n_pairs,)``, zero beyond the nearest.
        weights: Of the sites as neighbours, shape ``(n_sites, n_weights)``.
        centers: Of the Gaussians.
        width: Their standard deviation.
        means: Shape ``(n_sites, n_weights, n_gaussians)``, zero before.
    """
    for i in range(len(offsets) - 1):
        total = 0.0
        for a in range(offsets[i], offsets[i + 1]):
            if shares[a] == 0.0:
                break
            for b in range(offsets[i], a):
                share = shares[a] * shares[b]
                total += share
                product = 0.0
                for k in range(3):
                    product += vectors[a, k] * vectors[b, k]
                cosine = product / (distances[a] * distances[b])
                for g in range(len(centers)):
                    away = (cosine - centers[g]) / width
                    value = share * math.exp(-0.5 * away * away)
                    for w in range(weights.shape[1]):
                        means[i, w, g] += (
                            value * weights[neighbors[a], w] * weights[neighbors[b], w]
                        )
        if total > 0.0:
            for w in range(weights.shape[1]):
                for g in range(len(centers)):
                    means[i, w, g] /= total
