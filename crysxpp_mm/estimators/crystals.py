"""Crystals in the many containers that users hand to an estimator."""

# ruff: noqa: N803, N806 (X is the name that scikit-learn gives)
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import IStructure

from crysxpp_mm.data.store import GraphStore
from crysxpp_mm.errors import DataError, NetworkOutputError, StructureTypeError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter

BLOCK = 512
"""Structures that are converted at a time."""


class CrystalRows(NamedTuple):
    """The rows of a table, with the graphs of those that are crystals."""

    graphs: CrystalGraphs
    rows: NDArray[np.int64]  # position of each graph among the inputs
    errors: dict[int, Exception]  # why the other rows have none, by position
    labels: pd.Index | None  # index of the inputs, if of pandas
    n_rows: int
    names: list[str] | None = None  # of the crystals, if of a graph store

    def row_name(self, position: int) -> str:
        """Name a row in a message, by its position and index label."""
        if self.labels is None:
            return f"row {position}"
        label = self.labels[[position]].tolist()[0]  # Python's own number, where it is one
        return f"row {position} (index {label!r})"

    def label(self, position: int) -> Any:
        """Return the row's index label, or its position."""
        return position if self.labels is None else self.labels[position]

    def name(self, position: int) -> Any:
        """Return the name that a graph store gives the row, else its label."""
        return self.label(position) if self.names is None else self.names[position]

    def refuse_errors(self) -> None:
        """Raise the first error, of its own type, with the row named."""
        if self.errors:
            first = min(self.errors)
            error = self.errors[first]
            raise type(error)(f"{self.row_name(first)}: {error}") from error

    def refuse_not_finite(self, outputs: NDArray[np.float64]) -> None:
        """Raise if a network gave a crystal numbers that are not finite.

        Args:
            outputs: Shape ``(n_members, n_rows, n_outputs)``.

        Raises:
            NetworkOutputError: it did; the row is named.
        """
        bad = np.asarray(~np.isfinite(outputs).all(axis=(0, 2)))
        bad[sorted(self.errors)] = False
        if bad.any():
            raise NetworkOutputError(
                f"{self.row_name(int(bad.argmax()))}: the network gave numbers that are not "
                "finite; the crystal is far from those it learned from, or its weights are damaged."
            )


def read_crystals(X: object, converter: CrystalGraphConverter) -> CrystalRows:
    """Read the crystals of ``X``, whatever holds them.

    Args:
        X: Structures (or their dictionaries) in a list, a tuple, an object array, a Series or a
            DataFrame of one column; entries may be lists of one structure, graphs, or stores of
            one. Or the graphs of all crystals: ``CrystalGraphs`` or a ``GraphStore``.
        converter: The rule of the model.

    Raises:
        StructureTypeError: ``X`` is none of these.
        DataError: a graph store was built by another rule, or a table has several columns.
    """
    if isinstance(X, CrystalGraphs):
        return CrystalRows(X, np.arange(len(X)), {}, None, len(X))
    if isinstance(X, GraphStore):
        graphs = _graphs_of(X, converter)
        return CrystalRows(graphs, np.arange(len(X)), {}, None, len(X), X.names)
    index: pd.Index | None = None
    if isinstance(X, pd.DataFrame):
        if X.shape[1] != 1:
            raise DataError(
                f"X has {X.shape[1]} columns ({', '.join(map(repr, X.columns[:5]))}...); pass the "
                "column of structures, such as df['structure']."
            )
        X = X.iloc[:, 0]
    if isinstance(X, pd.Series):
        index = X.index
        X = list(X)
    if isinstance(X, IStructure | Mapping):
        raise StructureTypeError(
            f"expected several structures, got one {type(X).__name__}; put it into a list."
        )
    if isinstance(X, str) or not isinstance(X, Iterable):
        raise StructureTypeError(f"X must be list-like, got a {type(X).__name__}.")
    return _convert([_entry(item, converter) for item in X], converter, index)


def _graphs_of(store: GraphStore, converter: CrystalGraphConverter) -> CrystalGraphs:
    """Take the graphs out of a store.

    Raises:
        DataError: it was built by another rule.
    """
    if store.converter != converter:
        raise DataError(
            f"the graph store was built by {store.converter}, the model needs {converter}; build "
            "a store with the converter of the model."
        )
    return store.graphs


def _entry(item: Any, converter: CrystalGraphConverter) -> Any:
    """Return the structure or the graph of a row, which may be a list or a store of one."""
    if isinstance(item, list | tuple | np.ndarray) and len(item) == 1:
        item = item[0]
    if isinstance(item, GraphStore):
        return _graphs_of(item, converter)
    if isinstance(item, np.ndarray):
        raise StructureTypeError(
            f"an entry of X is an array of {len(item)}. (numpy.array makes an array of sites of a "
            "list of structures; pass the list.)"
        )
    return item


def _convert(
    items: Sequence[Any], converter: CrystalGraphConverter, index: pd.Index | None
) -> CrystalRows:
    parts: list[CrystalGraphs] = []
    rows: list[int] = []
    errors: dict[int, Exception] = {}
    for are_graphs, run in groupby(
        range(len(items)), key=lambda row: isinstance(items[row], CrystalGraphs)
    ):
        positions = list(run)
        if are_graphs:
            for row in positions:
                if len(items[row]) == 1:
                    parts.append(items[row])
                    rows.append(row)
                else:
                    errors[row] = StructureTypeError(
                        f"it holds the graphs of {len(items[row])} crystals; an entry is of one."
                    )
            continue
        for start in range(0, len(positions), BLOCK):
            block = positions[start : start + BLOCK]
            graphs, failed = converter.convert_each([items[row] for row in block])
            parts.append(graphs)
            rows.extend(row for i, row in enumerate(block) if i not in failed)
            errors |= {block[i]: error for i, error in failed.items()}
    return CrystalRows(
        CrystalGraphs.concatenate(parts), np.array(rows, dtype=np.int64), errors, index, len(items)
    )
