"""The labels that predictors are measured on: seven properties of Materials Project crystals.

Splits are drawn from a seed and are disjoint. A tenth of the crystals, the development crystals,
is in no test set: settings of the estimators were compared on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crysxpp_mm.benchmarks.data import DISTRUSTED, data_root
from crysxpp_mm.data.store import GraphStore, build_store
from crysxpp_mm.errors import DataError
from crysxpp_mm.estimators.transforms import get_transform
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter

Rows = NDArray[np.int64]

DEVELOPMENT_SEED = 777
"""Of the draw of the development crystals."""
DEVELOPMENT_FRACTION = 0.1
TEST_FRACTION = 0.1
"""Share of the labelled crystals that is the test set of a split."""
SETTINGS_CHOSEN = (
    "The sparsity, the rate of the encoder, the epochs to choose from, the hidden layer of the "
    "sites, the transforms of the band gap and of the magnetic moment, and which networks have "
    "vectors of elements, were set on development crystals, which are in no test set; older "
    "settings (layers, moments, loss, schedule) had been compared on another split, whose crystals "
    "may be among these."
)
"""How the defaults of the estimators came about, for the pages."""
GRAPHS = "mp.graphs"
"""Name of the file of graphs, where none is named."""


@dataclass(frozen=True, kw_only=True)
class Property:
    """One property of the paper.

    Attributes:
        name: What it is called in the tables.
        column: Its column of ``mp_properties.csv``.
        unit: Unit of the column.
        transform: What is learned in place of the label, as ``CrysXPPRegressor`` takes it.
        per_site: Whether the column is of the whole cell, and is divided by the sites to learn it.
        magnitude: Whether the sign of the column says nothing of the crystal, and is dropped.
        element_channel: Whether the networks have a learned vector of each element.
        error_unit: Unit of the errors, which are those of what is learned.
        aim: Error at 20 % of the labels that the project aims for; None where it names none.
    """

    name: str
    column: str
    unit: str
    transform: str | None = None
    per_site: bool = False
    magnitude: bool = False
    element_channel: bool = False
    error_unit: str
    aim: float | None = None

    def learned(self, labels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scale on which errors are measured: the decimal logarithm where that is learned."""
        return get_transform(self.transform).forward(labels)

    def labels_of(self, learned: NDArray[np.float64]) -> NDArray[np.float64]:
        """The labels that stand for what a model says, the inverse of ``learned``."""
        return get_transform(self.transform).inverse(learned)

    @property
    def target(self) -> str:
        """Name of the target of a model."""
        return f"{self.column}_per_site" if self.per_site else self.column

    @property
    def target_unit(self) -> str:
        """Unit of the target of a model."""
        return f"{self.unit}/site" if self.per_site else self.unit


PROPERTIES = (
    Property(
        name="formation energy",
        column="formation_energy_per_atom",
        unit="eV/atom",
        error_unit="eV/atom",
        aim=0.055,
    ),
    Property(
        name="band gap",
        column="band_gap",
        unit="eV",
        transform="nonnegative",
        error_unit="eV",
        aim=0.34,
    ),
    Property(name="Fermi energy", column="fermi_energy", unit="eV", error_unit="eV", aim=0.46),
    Property(
        name="magnetic moment",
        column="magnetic_moment",
        unit="Bohr magneton",
        transform="nonnegative",
        per_site=True,
        magnitude=True,  # a crystal and the same with every spin reversed are one
        element_channel=True,  # Sm and Gd have equal columns, and moments that are not
        error_unit="Bohr magneton/site",
    ),
    Property(
        name="bulk modulus",
        column="K_VRH",
        unit="GPa",
        transform="log10",
        error_unit="log10 GPa",
        aim=0.072,
    ),
    Property(
        name="shear modulus",
        column="G_VRH",
        unit="GPa",
        transform="log10",
        error_unit="log10 GPa",
        aim=0.115,
    ),
    Property(name="Poisson ratio", column="poisson_ratio", unit="", error_unit="-", aim=0.044),
)
"""The properties of the paper, in its order."""


def find_property(name: str) -> Property:
    """The property of a name.

    Raises:
        DataError: no property has that name; the message lists the names.

    Example:
        >>> find_property("bulk modulus").target
        'K_VRH'
    """
    for item in PROPERTIES:
        if item.name == name:
            return item
    known = ", ".join(repr(item.name) for item in PROPERTIES)
    raise DataError(f"there is no property {name!r}; there are {known}.")


class Split(NamedTuple):
    """Disjoint rows of the crystals that have a label."""

    train: Rows
    test: Rows


@dataclass(frozen=True)
class LabelledCrystals:
    """Crystals of the Materials Project with what is known of them.

    Attributes:
        graphs: Their graphs.
        table: One row per crystal, with the columns of ``mp_properties.csv``.
        development: Which of them are development crystals.
        data_hash: sha256 of the store that the graphs are from.
    """

    graphs: CrystalGraphs
    table: pd.DataFrame
    development: NDArray[np.bool_]
    data_hash: str

    @cached_property
    def identity(self) -> str:
        """A hash of which crystals these are: names, sites, elements.

        Unlike ``data_hash`` it knows no bond lengths, whose last digit depends on the processor,
        so that a run which was finished on one machine is found on another.
        """
        total = sha256("\n".join(self.table["material_id"]).encode())
        for array in (self.graphs.n_atoms, self.graphs.species_numbers):
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()

    def labels(self, item: Property) -> NDArray[np.float64]:
        """The labels of a property in the unit of its target, NaN where unknown, ``(n,)``."""
        values = self.table[item.column].to_numpy(dtype=np.float64).copy()
        if item.magnitude:
            values = np.abs(values)
        if item.per_site:
            values /= self.graphs.n_atoms
        if item.column == "formation_energy_per_atom":
            values[self.table["material_id"].isin(DISTRUSTED)] = np.nan
        return values

    def split(self, item: Property, *, fraction: float, seed: int) -> Split:
        """Training and test rows of a property.

        The test rows depend on the seed alone, and the training rows of a smaller fraction are
        among those of a larger one.

        Args:
            item: The property.
            fraction: Share of the labelled crystals to learn from, the validation crystals that
                an estimator takes of them included.
            seed: Of the draw.

        Raises:
            DataError: the training rows would reach into the test rows, or no row is left
                to learn from.
        """
        known = np.flatnonzero(~np.isnan(self.labels(item)))
        order = np.random.default_rng([seed, 11]).permutation(known)
        candidates = order[~self.development[order]]
        test = candidates[: round(TEST_FRACTION * len(known))]
        rest = order[~np.isin(order, test)]
        count = min(round(fraction * len(known)), len(known) - len(test))  # both may round up
        if not 0 < fraction <= 1 - TEST_FRACTION or not 0 < count <= len(rest):
            raise DataError(
                f"fraction must leave at least one crystal to learn from and {TEST_FRACTION:.0%} "
                f"for the test, got {fraction}."
            )
        return Split(np.sort(rest[:count]), np.sort(test))


def load_graphs(
    root: str | Path | None = None, *, graphs: str | Path | None = None, num_workers: int = 0
) -> GraphStore:
    """The graphs of ``mp_structures.zip``.

    Args:
        root: The data root, as for ``crysxpp_mm.benchmarks.data.data_root``.
        graphs: Their file, ``mp.graphs`` in the current folder without it; if it does not exist
            it is built, which takes minutes.
        num_workers: Processes that build them beside this one.

    Raises:
        DataError: the data are missing, or the file was built by another rule.
    """
    file = Path(GRAPHS) if graphs is None else Path(graphs)
    if file.exists():
        store = GraphStore.load(file)
    else:
        store = build_store(data_root(root) / "mp_structures.zip", file, num_workers=num_workers)
    if store.converter != CrystalGraphConverter():
        raise DataError(f"{file} was built by {store.converter}, not by the default rule.")
    return store


def load_properties(
    root: str | Path | None = None, *, graphs: str | Path | None = None, num_workers: int = 0
) -> LabelledCrystals:
    """Read the labels and the graphs of their crystals.

    Args:
        root: The data root, as for ``crysxpp_mm.benchmarks.data.data_root``.
        graphs: File of the graphs, as for ``load_graphs``.
        num_workers: Processes that build them beside this one.

    Raises:
        DataError: the data are missing, or a labelled crystal has no graph in the file.
    """
    folder = data_root(root)
    path = folder / "mp_properties.csv"
    if not path.is_file():
        raise DataError(f"{path} is missing; put it there, nothing is downloaded.")
    table = pd.read_csv(path)
    store = load_graphs(folder, graphs=graphs, num_workers=num_workers)
    names = [f"{material_id}.cif" for material_id in table["material_id"]]
    order = np.random.default_rng(DEVELOPMENT_SEED).permutation(len(table))
    development = np.zeros(len(table), dtype=bool)
    development[order[: int(DEVELOPMENT_FRACTION * len(table))]] = True
    return LabelledCrystals(store.select(names), table, development, store.data_hash)
