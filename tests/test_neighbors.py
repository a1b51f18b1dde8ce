"""The small tools under the neighbour search."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from crysxpp_mm.graph.neighbors import sorted_pairs, volume_and_heights


@pytest.mark.parametrize("spread", [1, 40], ids=["even", "uneven"])  # a table, and lexsort
def test_pairs_are_sorted_as_lexsort_sorts_them(spread: int) -> None:
    rng = np.random.default_rng(0)
    centers = np.concatenate([rng.integers(0, 30 * spread, 300), np.full(50 * spread, 3)])
    neighbors = np.arange(len(centers))
    distances = rng.integers(0, 5, len(centers)).astype(np.float64)  # many are equal
    order = np.lexsort((distances, centers))
    pairs = sorted_pairs(centers, neighbors, distances)
    assert_array_equal(pairs.centers, centers[order])
    assert_array_equal(pairs.neighbors, neighbors[order])
    assert_array_equal(pairs.distances, distances[order])


def test_no_pairs_sort_to_none() -> None:
    nothing = np.empty(0, dtype=np.int64)
    assert [len(array) for array in sorted_pairs(nothing, nothing, np.empty(0))] == [0, 0, 0]


def test_volume_and_heights_are_those_of_linear_algebra() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        lattice = rng.normal(size=(3, 3)) * 5
        volume, heights = volume_and_heights(lattice)
        assert volume == pytest.approx(abs(np.linalg.det(lattice)))
        assert_allclose(heights, 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0))


def test_a_flat_cell_has_no_volume_and_a_height_of_zero() -> None:
    volume, heights = volume_and_heights(np.array([[4.0, 0, 0], [0, 4, 0], [4, 4, 0]]))
    assert volume == 0
    assert min(heights) == 0
    assert volume_and_heights(np.zeros((3, 3))) == (0.0, [0.0, 0.0, 0.0])
