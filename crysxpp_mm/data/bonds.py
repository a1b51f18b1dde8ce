"""Bonds of crystals in a few numbers: how short they are, and how far neighbours lie."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Element

from crysxpp_mm.elements import MAX_ATOMIC_NUMBER
from crysxpp_mm.graph.arrays import CrystalGraphs, offsets_from_counts


@lru_cache(maxsize=1)
def covalent_radii() -> NDArray[np.float64]:
    """Covalent radius of every element in Angstrom (Cordero et al., Dalton Trans. 2832 (2008)).

    Returns:
        Shape ``(101,)``, by atomic number; the elements past curium get curium's.
    """
    from pymatgen.analysis.molecule_structure_comparator import CovalentRadius  # takes a second

    symbols = [Element.from_Z(number).symbol for number in range(1, MAX_ATOMIC_NUMBER + 1)]
    known = CovalentRadius.radius
    return np.array([0.0, *(known.get(symbol, known["Cm"]) for symbol in symbols)])


def site_means(graphs: CrystalGraphs, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of a number of elements over the species of every site, shape ``(n_atoms,)``.

    Args:
        graphs: The crystals.
        values: The number by atomic number, shape ``(101,)``.
    """
    n_atoms = int(graphs.atom_offsets[-1])
    sites = graphs.species_sites + np.repeat(
        graphs.atom_offsets[:-1], np.diff(graphs.species_offsets)
    )
    total = np.bincount(sites, graphs.occupancies, n_atoms)
    summed = np.bincount(sites, graphs.occupancies * values[graphs.species_numbers], n_atoms)
    return np.asarray(summed / np.maximum(total, 1e-9))


class SiteBonds:
    """Nearest and mean bond of every site, of lengths or of what stands for them.

    A site without bonds has infinite ones.

    Args:
        graphs: The crystals.
        lengths: Of every bond, shape ``(n_bonds,)``.

    Attributes:
        nearest: Shape ``(n_atoms,)``.
        mean: Weighted by the weights of the bonds, shape ``(n_atoms,)``.
    """

    def __init__(self, graphs: CrystalGraphs, lengths: NDArray[np.floating]) -> None:
        n_atoms = len(graphs.degrees)
        bonded = graphs.degrees > 0
        starts = offsets_from_counts(graphs.degrees)[:-1][bonded]
        self.nearest, self.mean = np.full(n_atoms, np.inf), np.full(n_atoms, np.inf)
        if len(starts):
            self.nearest[bonded] = np.minimum.reduceat(lengths, starts)
            weights = graphs.weights.astype(np.float64)
            summed = np.add.reduceat(lengths * weights, starts)
            self.mean[bonded] = summed / np.add.reduceat(weights, starts)


def bond_measures(graphs: CrystalGraphs) -> pd.DataFrame:
    """Measure the bonds of crystals.

    Returns:
        One row a crystal: ``shortest_bond`` in Angstrom, ``bond_over_radii`` (the least length of
        a bond over the sum of the covalent radii), ``loneliest_site`` (the same of the site whose
        nearest neighbour is the farthest), ``loosest_site`` (the same with the mean of a site's
        bonds), all infinite where there is no bond, and ``fewest_neighbors`` of a site.
    """
    if not len(graphs):
        return pd.DataFrame({name: np.empty(0) for name in MEASURES})
    radii = site_means(graphs, covalent_radii())
    centers = np.repeat(np.arange(len(graphs.degrees)), graphs.degrees)
    neighbors = graphs.neighbors + np.repeat(graphs.atom_offsets[:-1], graphs.n_bonds)
    over_radii = graphs.distances / np.maximum(radii[centers] + radii[neighbors], 1e-9)
    sites, lengths = SiteBonds(graphs, over_radii), SiteBonds(graphs, graphs.distances)
    starts = graphs.atom_offsets[:-1]
    n_neighbors = np.bincount(centers, graphs.weights, len(graphs.degrees))
    columns = (
        np.minimum.reduceat(lengths.nearest, starts),
        np.minimum.reduceat(sites.nearest, starts),
        np.maximum.reduceat(sites.nearest, starts),
        np.maximum.reduceat(sites.mean, starts),
        np.minimum.reduceat(n_neighbors, starts).round(3),
    )
    return pd.DataFrame(dict(zip(MEASURES, columns, strict=True)))


MEASURES = (
    "shortest_bond",
    "bond_over_radii",
    "loneliest_site",
    "loosest_site",
    "fewest_neighbors",
)
"""Columns of ``bond_measures``."""
