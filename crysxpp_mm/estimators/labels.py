"""Labels in the many containers that users hand to an estimator."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crysxpp_mm.errors import DataError
from crysxpp_mm.estimators.crystals import CrystalRows


class LabelRows(NamedTuple):
    """Labels of a table, row by row."""

    values: NDArray[Any]  # (n_rows, n_targets) numbers, NaN = unknown; (n_rows,) classes
    known: NDArray[np.bool_]  # (n_rows,), rows with a label
    errors: dict[int, str]  # why other rows have none that can be used, by position


class LabelColumns(NamedTuple):
    """The columns of ``y``, whatever holds them."""

    columns: list[pd.Series]
    names: list[Any] | None  # what pandas calls them, where y is of pandas
    one_dimensional: bool


def label_columns(y: object) -> LabelColumns:
    """Split labels into columns.

    Raises:
        DataError: they are absent, or not a table.
    """
    if y is None:
        raise DataError("y is missing: a property predictor needs labels.")
    if isinstance(y, pd.DataFrame):
        found = LabelColumns([y.iloc[:, i] for i in range(y.shape[1])], list(y.columns), False)
    elif isinstance(y, pd.Series):
        found = LabelColumns([y], None if y.name is None else [y.name], True)
    else:
        array = _array(y)
        table = array[:, None] if array.ndim == 1 else array
        columns = [pd.Series(table[:, i]) for i in range(table.shape[1])]
        found = LabelColumns(columns, None, array.ndim == 1)
    if not found.columns:
        raise DataError("y has no columns.")
    return found


def _array(y: Any) -> NDArray[Any]:
    """Turn labels that are not of pandas into an array of one or two dimensions."""
    try:
        array = np.ma.filled(y.astype(np.float64), np.nan) if np.ma.isMA(y) else np.asarray(y)
    except ValueError as error:
        raise DataError(f"y is not a table of numbers: {error}") from error
    if array.dtype.kind in "US":  # numpy makes texts of numbers beside a text
        array = np.array(y, dtype=object)
    if array.ndim not in (1, 2):
        raise DataError(f"y must have one or two dimensions, got {array.ndim}.")
    return array


def read_numbers(y: object, crystals: CrystalRows) -> NDArray[np.float64]:
    """Read the labels of a regression, shape ``(n_rows, n_targets)``, NaN where unknown.

    Raises:
        DataError: they are not numbers, infinite, or not as many as the crystals.
    """
    columns = label_columns(y).columns
    check_length(len(columns[0]), crystals)
    return np.stack([_numbers(column, crystals) for column in columns], axis=1)


def read_classes(y: Any, crystals: CrystalRows) -> LabelRows:
    """Read classes as plain Python: texts, whole numbers or booleans.

    Raises:
        DataError: they are none of these, or not as many as the crystals.
    """
    values = pd.Series(class_column(y).tolist(), dtype=object)
    check_length(len(values), crystals)
    known = values.notna().to_numpy(dtype=bool)
    plain = np.empty(len(values), dtype=object)
    plain[:] = [_class(value) for value in values]
    for position in np.flatnonzero(known):
        if not isinstance(plain[position], str | bool | int):
            raise DataError(
                f"y holds {plain[position]!r} at {crystals.row_name(int(position))}; classes "
                "are texts, whole numbers or booleans. For numbers use CrysXPPRegressor."
            )
    return LabelRows(plain, known, {})


def class_column(y: Any) -> pd.Series:
    """Turn ``y`` into one column, with its name where pandas has one.

    Raises:
        DataError: it is absent, or more than one column.
    """
    if y is None:
        raise DataError("y is missing: a property predictor needs labels.")
    if isinstance(y, pd.DataFrame | np.ndarray):
        if y.shape[1:] not in ((), (1,)):
            raise DataError(f"y must be one column of classes, got the shape {y.shape}.")
        y = y.iloc[:, 0] if isinstance(y, pd.DataFrame) else pd.Series(y.ravel())
    if isinstance(y, pd.Series):
        return y
    try:
        return pd.Series(list(y), dtype=object)
    except TypeError as error:
        raise DataError(f"y must be list-like, got a {type(y).__name__}.") from error


def check_length(n_labels: int, crystals: CrystalRows) -> None:
    """Raise if there are not as many labels as crystals.

    Raises:
        DataError: there are more or fewer, or no crystals at all.
    """
    if n_labels != crystals.n_rows:
        raise DataError(f"X has {crystals.n_rows} crystals and y has {n_labels} labels.")
    if n_labels == 0:
        raise DataError("there are no crystals: X is empty.")


def _numbers(column: pd.Series[Any], crystals: CrystalRows) -> NDArray[np.float64]:
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
        raise DataError(f"y holds a value that is not a number: {error}") from error
    if np.isinf(numbers).any():
        first = int(np.flatnonzero(np.isinf(numbers))[0])
        raise DataError(
            f"y is infinite at {crystals.row_name(first)}; remove or correct the label."
        )
    return np.asarray(numbers)


def _class(value: Any) -> Any:
    """Return a label as plain Python; whole floats, which pandas makes of integers, as integers."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
