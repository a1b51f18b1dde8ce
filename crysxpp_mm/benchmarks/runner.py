"""Rows of finished runs in a CSV file, found again by a hash of what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from crysxpp_mm.benchmarks.pages import RESULTS, write_report
from crysxpp_mm.benchmarks.properties import LabelledCrystals, load_properties
from crysxpp_mm.benchmarks.simple_models import one_blas_thread
from crysxpp_mm.compute import one_torch_thread
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.estimators import CrysXPPRegressor
from crysxpp_mm.serialization import write_whole

Row = dict[str, Any]

FIRST_SETTINGS = {
    *("accelerator", "batch_size", "checkpoint_dir", "devices", "encoder", "encoder_rate"),
    *("frozen_epochs", "gradient_clip", "hidden_dim", "layers", "learning_rate", "loss"),
    *("max_epochs", "min_steps", "moments", "n_convs", "n_members", "patience", "pbar", "pooled"),
    *("pretrained", "readout_dim", "seed", "selector", "selector_rate", "sparsity"),
    *("target_names", "transform", "units", "validation_fraction", "weight_decay"),
}
"""Settings of the estimator when the first rows were finished."""


def settings_of(estimator: CrysXPPRegressor) -> dict[str, Any]:
    """Settings of an estimator as a key knows them: later ones only where they are no default.

    So a run of an earlier version, which lacked them, is found again.
    """
    defaults = type(estimator)().get_params(deep=False)
    settings: dict[str, Any] = estimator.get_params(deep=False)
    return {
        name: value
        for name, value in settings.items()
        if name in FIRST_SETTINGS or value != defaults[name]
    }


def key_of(facts: str, arrays: Iterable[np.ndarray], *, shapes: bool = False) -> str:
    """Hash all that a run depends on.

    Args:
        facts: Settings and versions as text.
        arrays: Numbers.
        shapes: Whether types and shapes of the arrays count.
    """
    total = sha256(facts.encode())
    for array in arrays:
        if shapes:
            total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Data that a benchmark reads, and the folder that it writes into.

    Attributes:
        root: The data root, as for ``crysxpp_mm.benchmarks.data.data_root``.
        graphs: File of the graphs, as for ``load_graphs``.
        out: The folder of the results.
        say: Function that takes lines of text.
        crystals: The labelled crystals, if they are in memory.
    """

    root: str | Path | None = None
    graphs: str | Path | None = None
    out: str | Path = RESULTS
    say: Callable[[str], None] = print
    crystals: LabelledCrystals | None = None

    def labelled(self) -> LabelledCrystals:
        """The labelled crystals, read now if they are not in memory."""
        return self.crystals or load_properties(self.root, graphs=self.graphs)

    def file(self, name: str) -> Path:
        """A file in the folder of the results."""
        return Path(self.out) / name

    def write(self, name: str, text: str, **tables: pd.DataFrame) -> None:
        """Write a page and its tables, as ``write_report`` does, and tell where."""
        write_report(self.out, name, tables=tables, text=text)
        self.say(f"{name.replace('_', ' ')}: written to {self.out}")


HERE = Place()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, in torch and elsewhere."""
    with one_blas_thread(), one_torch_thread():
        yield


def check_names(what: str, names: Sequence[Any], known: Collection[Any] | None = None) -> None:
    """Raise if nothing is named, or something unknown.

    Args:
        what: Name of the argument.
        names: Its values.
        known: Those there are; anything goes if None.

    Raises:
        SettingsError: ``names`` is empty, or has a name that is not known.
    """
    if not names:
        raise SettingsError(f"{what} must not be empty.")
    if unknown := [name for name in names if known is not None and name not in known]:
        raise SettingsError(
            f"{what}: there is no {unknown[0]!r}; there are {', '.join(map(repr, known or ()))}."
        )


class RunTable:
    """Rows by the key of what they depend on, written as they come.

    Args:
        path: The CSV file. What it has is found again; a file that is absent, cut short or not
            ours has none.
        columns: Columns that a file of such runs has, beside ``key``.
    """

    def __init__(self, path: Path, columns: Iterable[str] = ()) -> None:
        self.path = path
        self.rows = self._read({"key", *columns})

    def find(self, key: str) -> list[Row]:
        """Rows of a key, none if it was not run yet."""
        return [row for row in self.rows if row["key"] == key]

    def rows_of(self, key: str, make: Callable[[], Iterable[Mapping[str, Any]]]) -> list[Row]:
        """Rows of a key, made and kept now if they are not there."""
        return self.find(key) or self.add(key, make())

    def add(self, key: str, rows: Iterable[Mapping[str, Any]]) -> list[Row]:
        """Keep the rows of a finished run, with their key as the last column."""
        added = [{**row, "key": key} for row in rows]
        self.rows = [row for row in self.rows if row["key"] != key] + added
        self.write(self.rows)
        return added

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows as the whole file, its folder made if absent."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(list(rows))
        if "seed" in table:  # whole numbers, also beside rows without one
            table = table.astype({"seed": "Int64"})
        write_whole(self.path, table.to_csv(index=False, lineterminator="\n").encode())

    def _read(self, columns: set[str]) -> list[Row]:
        try:
            found = pd.read_csv(
                self.path, dtype={"key": str, "seed": "Int64"}, float_precision="round_trip"
            )
        except (OSError, ValueError):  # what cannot be read is computed again
            return []
        if not columns <= set(found.columns):
            return []
        return [{str(name): value for name, value in r.items()} for r in found.to_dict("records")]
