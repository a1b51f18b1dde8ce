"""Places of the training crystals, to tell a new crystal that is unlike all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Element

from crysxpp_mm.data.bonds import bond_measures
from crysxpp_mm.data.reference import Arrays, ReferenceSet, read_arrays
from crysxpp_mm.elements import MAX_ATOMIC_NUMBER
from crysxpp_mm.errors import ModelFileError
from crysxpp_mm.estimators.crystals import CrystalRows
from crysxpp_mm.estimators.intervals import quantile_rank
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.serialization import weights_to_dict

N_NEIGHBORS = 5
"""Training crystals whose mean distance counts."""
N_NAMED = 3
"""Nearest training crystals that are named."""
QUANTILE = 0.95
"""Share of crystals like the training crystals that is to be inside."""
EXTREME = 0.005
"""Share of the training crystals beyond each limit of the bonds."""
FEW = 19
"""Crystals of a number of elements that have a ``QUANTILE`` of their own."""
LEAST_UNIT = 1e-3
"""Least unit of the relative distance; every column of the embedding has been brought to 1."""
UNLIMITED = 1e9
"""Stands for no limit."""
LIMITED = ("bond_over_radii", "loneliest_site", "loosest_site", "fewest_neighbors")
"""Measures of ``bond_measures`` that have limits."""
_BOUNDED = {"bond_over_radii": (True, True), "fewest_neighbors": (True, False)}
"""Which of them have a lower and an upper limit, where it is not the upper one alone."""


class _Learned(NamedTuple):
    """The part of a crystal that ``domain`` needs beside its place."""

    bonds: NDArray[np.float64]  # (n_graphs, 4), as LIMITED
    kinds: NDArray[np.int64]  # 0 elements, 1 binaries, 2 the others

    @classmethod
    def of(cls, graphs: CrystalGraphs) -> Self:
        return cls(bond_measures(graphs)[list(LIMITED)].to_numpy(), _kinds(_n_elements(graphs)))


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingDomain:
    """Elements, sizes, bonds and places in the embedding of the training crystals.

    Attributes:
        reference: The training crystals.
        elements: Whether a training crystal has the element, by atomic number, shape ``(101,)``.
        sizes: Least and largest number of sites, shape ``(2,)``.
        limits: Least and largest of each of ``LIMITED``, shape ``(4, 2)``.
        units: The distance that crystals like the training crystals stay within, shape ``(3,)``:
            of elements, of binaries and of crystals of more elements.
        first: True for the domain of a version 1 file: at most 1,000 crystals without names, one
            unit for all, and no limits of bonds.
    """

    reference: ReferenceSet
    elements: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    limits: NDArray[np.float64]
    units: NDArray[np.float64]
    first: bool = False

    @classmethod
    def measure(
        cls,
        embeddings: NDArray[np.float32],
        graphs: CrystalGraphs,
        names: Sequence[Any],
        values: NDArray[np.floating] | None = None,
    ) -> Self:
        """The domain of training crystals.

        Args:
            embeddings: Shape ``(n_graphs, n_columns)``, of at least two crystals.
            graphs: The crystals.
            names: Name of each.
            values: What the model says of each.
        """
        reference = ReferenceSet.build(embeddings, graphs, names, values)
        learned = _Learned.of(graphs)
        limits = _limits(learned.bonds)
        counts = _element_counts(graphs)
        alone = np.array([(counts[numbers] == 1).any() for numbers in _numbers(graphs)])
        unusual = alone | _beyond(learned.bonds, limits).any(axis=1)
        return cls(
            reference=reference,
            elements=counts > 0,
            sizes=np.array([graphs.n_atoms.min(), graphs.n_atoms.max()]),
            limits=limits,
            units=_units(reference, learned.kinds, unusual),
        )

    def extended(
        self,
        embeddings: NDArray[np.float32],
        graphs: CrystalGraphs,
        names: Sequence[Any],
        values: NDArray[np.floating] | None = None,
    ) -> TrainingDomain:
        """The domain of these and more training crystals.

        Args:
            embeddings: By the network of the others, shape ``(n_graphs, n_columns)``.
            graphs: The new crystals.
            names: Name of each.
            values: What the model says of each.
        """
        reference = self.reference.extended(embeddings, graphs, names, values)
        new = _Learned.of(graphs)
        limits = _limits(new.bonds)
        old = np.zeros(len(self.reference), dtype=bool)
        unusual = np.concatenate([old, _beyond(new.bonds, limits).any(axis=1)])
        n_elements = np.array([_elements_in(formula) for formula in reference.formulas])
        sizes = [*self.sizes, graphs.n_atoms.min(), graphs.n_atoms.max()]
        return TrainingDomain(
            reference=reference,
            elements=self.elements | (_element_counts(graphs) > 0),
            sizes=np.array([min(sizes), max(sizes)]),
            limits=np.stack(
                [
                    np.minimum(self.limits[:, 0], limits[:, 0]),
                    np.maximum(self.limits[:, 1], limits[:, 1]),
                ],
                axis=1,
            ),
            units=_units(reference, _kinds(n_elements), unusual),
            first=self.first,
        )

    def distances(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean distance of each crystal to its nearest training crystals, shape ``(n_graphs,)``.

        Args:
            embeddings: Shape ``(n_graphs, n_columns)``.
        """
        return np.asarray(self.reference.nearest(embeddings, N_NEIGHBORS)[0].mean(axis=1))

    def table(self, embeddings: NDArray[np.float32], graphs: CrystalGraphs) -> pd.DataFrame:
        """Measure how near crystals are to the training crystals, one row a crystal.

        Args:
            embeddings: Shape ``(n_graphs, n_columns)``.
            graphs: The crystals.
        """
        distances, rows = self.reference.nearest(embeddings, N_NEIGHBORS)
        measures, sizes = bond_measures(graphs), graphs.n_atoms
        kinds = _kinds(_n_elements(graphs))
        table = pd.DataFrame(
            {
                "unseen_elements": np.array(self._unseen_elements(graphs), dtype=object),
                "n_sites": sizes,
                "size_in_range": (self.sizes[0] <= sizes) & (sizes <= self.sizes[1]),
                "distance": distances.mean(axis=1),
                "relative_distance": distances.mean(axis=1) / self.units[kinds],
                "shortest_bond": measures["shortest_bond"],
                "bond_over_radii": measures["bond_over_radii"],
            }
        )
        bonds = measures[list(LIMITED)].to_numpy()
        table["learned_from"] = self.reference.find(graphs) >= 0
        table["reason"] = self._reasons(
            table, np.minimum(bonds, UNLIMITED) if self.first else bonds
        )
        table["in_domain"] = table["reason"] == ""
        return pd.concat([table, self._nearest(rows)], axis=1)

    def _unseen_elements(self, graphs: CrystalGraphs) -> list[str]:
        """The elements of each crystal that no training crystal has, such as ``"La, U"``."""
        unseen = (numbers[~self.elements[numbers]] for numbers in _numbers(graphs))
        return [", ".join(Element.from_Z(int(z)).symbol for z in numbers) for numbers in unseen]

    def _reasons(self, table: pd.DataFrame, bonds: NDArray[np.float64]) -> NDArray[np.object_]:
        """Say why each crystal is outside, in words; empty where it is inside."""
        texts: list[list[str]] = [[] for _ in range(len(table))]

        def note(rows: Any, text: str, *columns: Any) -> None:
            for row in np.flatnonzero(rows):
                texts[row].append(text.format(*(column[row] for column in columns)))

        seen, sizes = table["unseen_elements"], self.sizes
        note(seen != "", "no training crystal has {}", seen)
        within = f", learned from {sizes[0]} to {sizes[1]}"
        note(~table["size_in_range"], "cell of {}" + within, table["n_sites"])
        lonely = np.isinf(bonds).any(axis=1)
        note(lonely, "a site without neighbors")
        for measure, (least, most) in enumerate(self.limits.tolist()):
            beyond = _beyond(bonds, self.limits)[:, measure] & ~lonely
            limits = np.full((2, len(table)), [[least], [most]])
            note(beyond, _IN_WORDS[LIMITED[measure]], bonds[:, measure], *limits)
        far = table["relative_distance"]
        note(far > 1, "{:.3g} times as far from them as training crystals are", far)
        joined = np.array([*map("; ".join, texts), None], dtype=object)[:-1]
        return np.where(table["learned_from"], "", joined)

    def _nearest(self, rows: NDArray[np.int64]) -> pd.DataFrame:
        """Names and formulas of the nearest training crystals; None where there are none."""
        columns = {}
        for what in ("nearest", "formula"):
            known = self.reference.names if what == "nearest" else self.reference.formulas
            for place in range(N_NAMED):
                found = np.full(len(rows), None, dtype=object)
                if place < rows.shape[1]:  # a first version names none
                    found[:] = [None if known[row] == "" else known[row] for row in rows[:, place]]
                columns[f"{what}_{place + 1}"] = found
        return pd.DataFrame(columns)

    def to_plain(self) -> dict[str, Any]:
        """JSON-ready; the arrays are packed as weights are."""
        names = ("elements", "sizes", "limits", "units")
        return {
            "reference": self.reference.to_plain(),
            "first": self.first,
            "arrays": weights_to_dict(Arrays({name: getattr(self, name) for name in names})),
        }

    @classmethod
    def from_plain(cls, document: Mapping[str, Any], *, n_columns: int) -> Self:
        """Read what ``to_plain`` made, of this version or of version 1.

        Raises:
            ModelFileError: it is damaged, or belongs to a network of another width.
        """
        if isinstance(document, Mapping) and "n_reference" in document:
            domain = cls(**_first_version(document), first=True)
        elif isinstance(document, Mapping) and set(document) == {"reference", "first", "arrays"}:
            arrays = read_arrays(
                document["arrays"],
                elements=np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=np.bool_),
                sizes=np.zeros(2, dtype=np.int64),
                limits=np.zeros((len(LIMITED), 2)),
                units=np.zeros(3),
            )
            reference = ReferenceSet.from_plain(document["reference"])
            domain = cls(reference=reference, first=bool(document["first"]), **arrays)
        else:
            raise ModelFileError("the domain must have reference, first and arrays.")
        if (width := len(domain.reference.mean)) != n_columns:
            raise ModelFileError(
                f"the domain is one of {width} columns, the network has {n_columns}."
            )
        return domain


_IN_WORDS = {
    "bond_over_radii": (
        "the shortest bond is {0:.3g} of the sum of the radii, learned from {1:.3g} to {2:.3g}"
    ),
    "loneliest_site": (
        "a site has its nearest neighbor at {0:.3g} of the sum of the radii, learned to {2:.3g}"
    ),
    "loosest_site": (
        "a site has its neighbors at {0:.3g} of the sum of the radii, learned to {2:.3g}"
    ),
    "fewest_neighbors": "a site has {0:g} neighbors, learned from {1:g}",
}
"""What is told of a measure beyond its limits, which follow it."""


def domain_table(
    domain: TrainingDomain, embeddings: NDArray[np.float32], crystals: CrystalRows
) -> pd.DataFrame:
    """Measure how near crystals are to the training crystals, one row an input.

    Args:
        domain: Of the training crystals.
        embeddings: Of the crystals that have a graph, by the network of ``domain``.
        crystals: The inputs; rows without a graph get None, NaN and False.
    """
    table = domain.table(embeddings, crystals.graphs).set_axis(crystals.rows)
    if crystals.errors:
        table = table.reindex(np.arange(crystals.n_rows))
        bad = sorted(crystals.errors)
        for name in table:
            if name in ("size_in_range", "in_domain", "learned_from"):
                table[name] = table[name].eq(True)
            elif table[name].dtype == object:
                table.loc[bad, name] = None
        table.loc[bad, "reason"] = "not a crystal"
    table.index = pd.RangeIndex(crystals.n_rows) if crystals.labels is None else crystals.labels
    return table


def _first_version(document: Mapping[str, Any]) -> dict[str, Any]:
    """Read the domain of a version 1 file."""
    if set(document) != {"n_columns", "n_components", "n_reference", "arrays"}:
        raise ModelFileError("the domain must have n_columns, n_components, n_reference, arrays.")
    n_columns, n_components = int(document["n_columns"]), int(document["n_components"])
    n_reference = int(document["n_reference"])
    arrays = read_arrays(
        document["arrays"],
        mean=np.zeros(n_columns, dtype=np.float32),
        scale=np.zeros(n_columns, dtype=np.float32),
        components=np.zeros((n_components, n_columns), dtype=np.float32),
        reference=np.zeros((n_reference, n_components), dtype=np.float32),
        elements=np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=np.bool_),
        sizes=np.zeros(2, dtype=np.int64),
        unit=np.zeros(1),
    )
    reference = ReferenceSet(
        names=[""] * n_reference,
        formulas=[""] * n_reference,
        marks=np.full((n_reference, 5), UNLIMITED, dtype=np.float32),
        values=np.empty((n_reference, 0), dtype=np.float16),
        places=arrays.pop("reference").astype(np.float16),
        **{name: arrays.pop(name) for name in ("mean", "scale", "components")},
    )
    return {
        "reference": reference,
        "limits": np.tile([-UNLIMITED, UNLIMITED], (len(LIMITED), 1)),
        "units": np.repeat(arrays.pop("unit"), 3),
        **arrays,
    }


def _numbers(graphs: CrystalGraphs) -> list[NDArray[np.uint8]]:
    """Atomic numbers of the elements of each crystal."""
    parts = np.split(graphs.species_numbers, graphs.species_offsets[1:-1])
    return [np.unique(part) for part in parts[: len(graphs)]]


def _n_elements(graphs: CrystalGraphs) -> NDArray[np.int64]:
    return np.array([len(numbers) for numbers in _numbers(graphs)], dtype=np.int64)


def _element_counts(graphs: CrystalGraphs) -> NDArray[np.int64]:
    """In how many crystals each element is, by atomic number."""
    return np.bincount(np.concatenate(_numbers(graphs)), minlength=MAX_ATOMIC_NUMBER + 1)


def _elements_in(formula: str) -> int:
    return sum(letter.isupper() for letter in formula)


def _kinds(n_elements: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(n_elements > 0, np.clip(n_elements - 1, 0, 2), 2)


def _limits(bonds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least and largest value of each measure, ``EXTREME`` of the crystals beyond them."""
    limits = np.tile([-UNLIMITED, UNLIMITED], (bonds.shape[1], 1))
    for column, name in enumerate(LIMITED):
        known = bonds[np.isfinite(bonds[:, column]), column]
        below, above = _BOUNDED.get(name, (False, True))
        if below and len(known):
            limits[column, 0] = np.quantile(known, EXTREME, method="lower")
        if above and len(known):
            limits[column, 1] = np.quantile(known, 1 - EXTREME, method="higher")
    return limits


def _beyond(bonds: NDArray[np.float64], limits: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark the measures of a crystal that are beyond their limits, shape ``(n_graphs, 4)``."""
    return np.asarray((bonds < limits[:, 0]) | (bonds > limits[:, 1]))


def _units(
    reference: ReferenceSet, kinds: NDArray[np.int64], unusual: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The distance that ``QUANTILE`` of the crystals of each number of elements stay within.

    Crystals that are unusual anyway count among those that do not. Where there are few of a
    number of elements, all of them stay within, and that share of all crystals.
    """
    distances = reference.nearest(None, N_NEIGHBORS)[0].mean(axis=1)
    everything = _unit(distances, unusual)
    units = np.full(3, max(everything, LEAST_UNIT))
    for kind in range(3):
        own = kinds == kind
        if own.sum() > FEW:
            units[kind] = max(_unit(distances[own], unusual[own]), LEAST_UNIT)
        elif own.any():
            units[kind] = max(units[kind], distances[own].max())
    return units


def _unit(distances: NDArray[np.float64], unusual: NDArray[np.bool_]) -> float:
    """The conformal quantile of distances, those of unusual crystals taken as infinite."""
    ascending = np.sort(np.where(unusual, np.inf, distances))
    within = ascending[: max(quantile_rank(len(distances), QUANTILE), 1)]
    finite = within[np.isfinite(within)]
    return float(finite[-1]) if len(finite) else float(distances.max())
