"""Finished runs of a benchmark in a CSV file, so that one that was stopped goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from crysxpp_mm.estimators import CrysXPPRegressor
from crysxpp_mm.estimators.document import LATER_SETTINGS
from crysxpp_mm.serialization import write_whole

Row = dict[str, Any]


def settings_of(estimator: CrysXPPRegressor) -> dict[str, Any]:
    """What the key of a run knows of an estimator: options that came later only where they are on.

    So a run of an earlier version, which lacked them, is found again.
    """
    settings: dict[str, Any] = estimator.get_params(deep=False)
    return {
        name: value
        for name, value in settings.items()
        if name not in LATER_SETTINGS or value != LATER_SETTINGS[name]
    }


def read_runs(path: Path, columns: Sequence[str] = ("key",)) -> list[Row]:
    """The rows of a file of runs; none if it is absent, cut short or not ours.

    Args:
        path: The file.
        columns: Columns that it must have.
    """
    try:
        found = pd.read_csv(path, dtype={"key": str})
    except (OSError, ValueError):  # what cannot be read is computed again
        return []
    if not set(columns) <= set(found.columns):
        return []
    return [{str(name): value for name, value in row.items()} for row in found.to_dict("records")]


def write_runs(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the file whole, its folder made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(list(rows))
    write_whole(path, table.to_csv(index=False, lineterminator="\n").encode())


class RunTable:
    """Rows by the key of what they depend on, written as they come.

    Args:
        path: The CSV file; what it has is found again.
        columns: Columns that a file of such runs has, beside ``key``.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        self.path = path
        self.rows = read_runs(path, ("key", *columns))

    def find(self, key: str) -> list[Row]:
        """The rows of a key, none if it was not run yet."""
        return [row for row in self.rows if row["key"] == key]

    def add(self, key: str, rows: Iterable[Mapping[str, Any]]) -> list[Row]:
        """Keep the rows of a finished run; they come back with their key as the last column."""
        added = [{**row, "key": key} for row in rows]
        self.rows += added
        write_runs(self.path, self.rows)
        return added
