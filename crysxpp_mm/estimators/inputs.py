"""What users hand to an estimator: crystals in their many containers, and labels."""

# ruff: noqa: N803, N806 (X is the name that scikit-learn gives)
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import IStructure

from crysxpp_mm.data.store import GraphStore
from crysxpp_mm.errors import DataError, StructureTypeError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter

BLOCK = 512
"""Structures that are converted at a time."""


class Crystals(NamedTuple):
    """The graphs of those rows that have one."""

    graphs: CrystalGraphs
    rows: NDArray[np.int64]  # position of each graph among the inputs
    errors: dict[int, Exception]  # why the other rows have none, by position
    labels: pd.Index | None  # index of the inputs, if of pandas
    n_rows: int

    def row_name(self, position: int) -> str:
        """How to speak of a row in a message."""
        if self.labels is None:
            return f"row {position}"
        label = self.labels[[position]].tolist()[0]  # Python's own number, where it is one
        return f"row {position} (index {label!r})"

    def label(self, position: int) -> Any:
        """The row's index label, or its position."""
        return position if self.labels is None else self.labels[position]

    def refuse_errors(self) -> None:
        """Raise the first error, of its own type, with the row named."""
        if self.errors:
            first = min(self.errors)
            error = self.errors[first]
            raise type(error)(f"{self.row_name(first)}: {error}") from error


def read_crystals(X: object, converter: CrystalGraphConverter) -> Crystals:
    """The crystals of ``X``.

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
        return Crystals(X, np.arange(len(X)), {}, None, len(X))
    if isinstance(X, GraphStore):
        return Crystals(_graphs_of(X, converter), np.arange(len(X)), {}, None, len(X))
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
    """The graphs of a store.

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
    """The structure or the graph of a row, which may be a list or a store of one."""
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
) -> Crystals:
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
    return Crystals(
        CrystalGraphs.concatenate(parts), np.array(rows, dtype=np.int64), errors, index, len(items)
    )


class Labels(NamedTuple):
    """Labels as numbers."""

    values: NDArray[np.float64]  # (n_rows, n_targets), NaN = unknown
    columns: list[Any] | None  # what pandas calls them, where y is of pandas
    one_dimensional: bool


def read_labels(y: object, crystals: Crystals) -> Labels:
    """The labels of a regression.

    Raises:
        DataError: they are no numbers, infinite, or not as many as the crystals.
    """
    names: list[Any] | None = None
    if y is None:
        raise DataError("y is missing: a property predictor needs labels.")
    if isinstance(y, pd.DataFrame):
        names = list(y.columns)
        columns = [y.iloc[:, i] for i in range(y.shape[1])]
    elif isinstance(y, pd.Series):
        names = None if y.name is None else [y.name]
        columns = [y]
    else:
        try:
            array = np.ma.filled(y.astype(np.float64), np.nan) if np.ma.isMA(y) else np.asarray(y)
        except ValueError as error:
            raise DataError(f"y is no table of numbers: {error}") from error
        if array.ndim not in (1, 2):
            raise DataError(f"y must have one or two dimensions, got {array.ndim}.")
        table = array[:, None] if array.ndim == 1 else array
        columns = [pd.Series(table[:, i]) for i in range(table.shape[1])]
    if not columns:
        raise DataError("y has no columns.")
    one_dimensional = not isinstance(y, pd.DataFrame) and np.ndim(y) == 1  # type: ignore[arg-type]
    check_length(len(columns[0]), crystals)
    values = np.empty((len(columns[0]), len(columns)))
    for i, column in enumerate(columns):
        values[:, i] = _numbers(column, crystals)
    return Labels(values, names, one_dimensional)


def check_length(n_labels: int, crystals: Crystals) -> None:
    """Refuse labels that are not as many as the crystals.

    Raises:
        DataError: as said.
    """
    if n_labels != crystals.n_rows:
        raise DataError(f"X has {crystals.n_rows} crystals and y has {n_labels} labels.")
    if n_labels == 0:
        raise DataError("there are no crystals: X is empty.")


def _numbers(column: pd.Series[Any], crystals: Crystals) -> NDArray[np.float64]:
    if column.dtype.kind in "mM" or isinstance(column.dtype, pd.PeriodDtype):
        raise DataError(
            f"y holds {column.dtype}; labels must be numbers, so turn dates and times into numbers "
            "of a unit that the model is to learn."
        )
    for position, value in enumerate(column):
        if isinstance(value, str | bytes | complex | date | timedelta):
            raise DataError(
                f"y holds {value!r} at {crystals.row_name(position)}; labels must be numbers "
                "(NaN = unknown). For classes use CrysXPPClassifier."
            )
    try:
        numbers = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"y holds what is no number: {error}") from error
    if np.isinf(numbers).any():
        first = int(np.flatnonzero(np.isinf(numbers))[0])
        raise DataError(
            f"y is infinite at {crystals.row_name(first)}; remove or correct the label."
        )
    return np.asarray(numbers)
