"""One row per crystal: computed block after block, put beside its name, written and told."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from crysxpp_mm.cli.messages import one_line, print_errors
from crysxpp_mm.cli.tables import ERROR, NOTE, join_columns, refuse_taken, write_table
from crysxpp_mm.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from crysxpp_mm.cli.inputs import OpenCrystals


class Block(NamedTuple):
    """Rows that were computed together."""

    names: list[str]
    columns: pd.DataFrame  # a row for each name that has no error, by its position
    errors: Mapping[int, str]  # why the others have no numbers, by position
    notes: Mapping[int, str] = {}


class Rows(NamedTuple):
    """All rows of a command."""

    columns: pd.DataFrame
    errors: list[str]  # empty where a row has its numbers
    notes: list[str]  # empty where a file was clear
    seconds: float


def compute_rows(
    blocks: Iterable[Block], source: OpenCrystals, *, ignore_errors: bool, unit: str, done: str
) -> Rows:
    """Collect blocks behind a progress bar.

    Args:
        blocks: They are computed as they are drawn.
        source: OpenCrystals of all blocks.
        ignore_errors: Whether a crystal that fails keeps its row.
        unit: OpenCrystals in the words of the command, for the bar.
        done: What is done to them, for errors.

    Raises:
        DataError: a crystal failed and errors are not to be ignored, all failed, or the table of
            the crystals has a column of the same name as a new one.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    start = time.perf_counter()
    parts: list[pd.DataFrame] = []
    errors: list[str] = []
    notes: list[str] = []
    refuse_taken(source.table, [NOTE, *([ERROR] if ignore_errors else [])], source.label)
    with tqdm(total=len(source.names), desc=unit, unit="") as bar:
        for names, columns, failed, noted in blocks:
            refuse_taken(source.table, columns.columns, source.label)
            told = {position: one_line(failed[position]) for position in sorted(failed)}
            if told and not ignore_errors:
                position, error = next(iter(told.items()))
                raise DataError(
                    f"{names[position]}: {error} (--ignore-errors keeps its row, without numbers, "
                    "and goes on.)"
                )
            errors += [told.get(position, "") for position in range(len(names))]
            notes += [one_line(noted.get(position, "")) for position in range(len(names))]
            parts.append(columns.reindex(range(len(names))))
            bar.update(len(names))
    if all(errors):
        raise DataError(f"{source.label}: {done}; {source.names[0]}: {errors[0]}")
    columns = pd.concat(parts, ignore_index=True)
    return Rows(columns, errors, notes, time.perf_counter() - start)


def write_rows(
    rows: Rows, source: OpenCrystals, out: Path, *, ignore_errors: bool, unit: str, what: str
) -> None:
    """Write the table of a command, and tell what it holds and what failed.

    Args:
        rows: What was computed.
        source: OpenCrystals that it was computed of.
        out: File of the table.
        ignore_errors: Whether it gets a column ``error``.
        unit: OpenCrystals in the words of the command, and what was done to them.
        what: A line on the columns.
    """
    table = join_columns(
        source.names,
        source.table,
        rows.columns,
        rows.errors if ignore_errors else None,
        rows.notes if any(rows.notes) else None,
    )
    write_table(table, out)
    failed = {n: error for n, error in zip(source.names, rows.errors, strict=True) if error}
    crystals, done = unit.split()
    typer.echo(
        f"{len(rows.errors) - rows.errors.count('')} of {len(rows.errors)} {crystals} failed."
        if failed
        else f"{len(rows.errors)} {crystals} {done}, none failed."
    )
    print_errors(failed, "the column 'error'")
    if n_notes := sum(map(bool, rows.notes)):
        typer.echo(f"{n_notes} of them with a note on their file, in the column {NOTE!r}.")
    typer.echo(f"{what}, in {rows.seconds:.1f} s.")
    typer.echo(f"Wrote {out}: {len(table)} rows, {len(table.columns)} columns.")
    if source.table is not None and source.column not in source.table:
        typer.echo(f"The column {source.column!r} is not repeated in it.")
