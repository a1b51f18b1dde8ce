"""The tables that commands write."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from gzip import GzipFile
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from crysxpp_mm.errors import DataError, SettingsError

if TYPE_CHECKING:
    import pandas as pd

OUTPUT_SUFFIXES = (".csv", ".csv.gz", ".json.gz")
"""Kinds of tables that are written."""
ERROR, NOTE = "error", "note"
"""Columns of texts: why a row has no numbers, and what was made of its file."""


def check_output(out: Path) -> None:
    """Refuse the name of an output before any work is done.

    Raises:
        SettingsError: it is that of no table that can be written, or a folder.
    """
    if not out.name.endswith(OUTPUT_SUFFIXES):
        raise SettingsError(f"--out {out}: the name must end in {', '.join(OUTPUT_SUFFIXES)}.")
    check_writable(out)


def check_writable(out: Path) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        SettingsError: it is a folder, or no file can be made there.
    """
    if out.is_dir():
        raise SettingsError(f"--out {out} is a folder; name a file in it.")
    there = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise SettingsError(f"--out {out} cannot be written: {error.strerror}.") from error


def refuse_taken(table: pd.DataFrame | None, new: Iterable[object], label: str) -> None:
    """Refuse new columns whose names are taken, before any work is done.

    Args:
        table: The other columns of the crystals' table, if they have one.
        new: Names of columns that are to be added.
        label: Where the crystals come from.

    Raises:
        DataError: the table has a column of that name already.
    """
    if table is not None and (taken := [name for name in new if name in table.columns]):
        raise DataError(f"{label} has a column {taken[0]!r} already; rename or remove it.")


def join_columns(
    names: Sequence[str],
    table: pd.DataFrame | None,
    columns: pd.DataFrame,
    errors: Sequence[str] | None,
    notes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Join what is written: the other columns of a table, or ids and files, and the new columns.

    Args:
        names: Name of each crystal, such as its file's.
        table: The other columns of the crystals' table, if they have one.
        columns: What was computed, a row a crystal.
        errors: Why a row has no numbers, empty where it has; no such column if None.
        notes: What was made of a file, empty where it was clear; no such column if None.
    """
    import pandas as pd

    from crysxpp_mm.data.sources import row_ids

    kept = pd.DataFrame({"name": row_ids(names), "file": names}) if table is None else table
    parts = [kept, columns.set_axis(kept.index)]
    for name, texts in ((NOTE, notes), (ERROR, errors)):
        if texts is not None:
            parts.append(pd.DataFrame({name: texts}, index=kept.index))
    return pd.concat(parts, axis=1)


def write_table(table: pd.DataFrame, out: Path) -> None:
    """Write a table; the file appears under its name only when it is complete."""
    import pandas as pd

    from crysxpp_mm.serialization import complete_file

    out.parent.mkdir(parents=True, exist_ok=True)
    counted = table.index.equals(pd.RangeIndex(len(table)))
    with (
        complete_file(out) as temporary,
        temporary.open("wb") as raw,
        _text(raw, packed=out.name.endswith(".gz")) as file,
    ):
        if ".csv" in out.suffixes[-2:]:
            plain = _plain(table, json.dumps)
            plain.to_csv(file, index=not counted, lineterminator="\n")
        else:
            plain = _plain(table, lambda cell: cell)
            plain.to_json(file, orient="split", double_precision=15)


@contextmanager
def _text(raw: BinaryIO, *, packed: bool) -> Iterator[TextIO]:
    """A text file on a binary one; packed, it keeps no name and no time: same rows, same bytes."""
    with ExitStack() as stack:
        binary: Any = raw
        if packed:
            binary = stack.enter_context(GzipFile(filename="", mode="wb", fileobj=raw, mtime=0))
        yield stack.enter_context(TextIOWrapper(binary, encoding="utf-8", newline=""))


def _plain(table: pd.DataFrame, nested: Callable[[Any], Any]) -> pd.DataFrame:
    """The table with structures and the like as dictionaries, and these as ``nested`` has them."""
    import pandas as pd

    def plain(cell: Any) -> Any:
        cell = cell.as_dict() if hasattr(cell, "as_dict") else cell
        return nested(cell) if isinstance(cell, dict | list) else cell

    parts = [
        pd.Series(map(plain, cells), cells.index, dtype=object, name=name)  # no whole number as 1.0
        if pd.api.types.is_object_dtype(cells)
        else cells
        for name, cells in table.items()
    ]
    return pd.concat(parts, axis=1)
