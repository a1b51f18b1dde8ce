"""Invented tables for the benchmarks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from pymatgen.core import Lattice, Structure

from crysxpp_mm.benchmarks.data import BenchmarkTable


def rock_salts(n: int) -> list[Structure]:
    """Rock salts that differ in their elements and lattice constants."""
    cations, anions = ["Li", "Na", "K", "Rb", "Mg", "Ca"], ["F", "Cl", "Br", "O", "S"]
    return [
        Structure(
            Lattice.cubic(4.0 + 0.03 * index),
            [cations[index % 6]] * 4 + [anions[index % 5]] * 4,
            [
                *([0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]),
                *([0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [0.5, 0.5, 0.5]),
            ],
        )
        for index in range(n)
    ]


def small_tables() -> dict[str, BenchmarkTable]:
    """Two of the tables with invented targets, three targets in all."""
    structures = rock_salts(24)
    sizes = np.array([structure.volume for structure in structures])
    targets = {
        "matbench_jdft2d": {"exfoliation energy": np.where(sizes < 70, np.nan, sizes)},
        "mp2000": {"formation energy": np.sin(sizes), "band gap": np.sqrt(sizes)},
    }
    return {
        name: BenchmarkTable(
            name=name,
            structures=structures,
            targets=pd.DataFrame(values),
            notes=(f"{name}: invented.",),
        )
        for name, values in targets.items()
    }
