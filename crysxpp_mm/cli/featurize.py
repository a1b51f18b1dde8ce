"""``crysxpp featurize``."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crysxpp_mm.cli.inputs import find_source
from crysxpp_mm.cli.messages import one_line, print_errors, reason
from crysxpp_mm.cli.options import Column, DataHome, Model, Source
from crysxpp_mm.cli.tables import OUTPUT_SUFFIXES, check_output, join_columns, write_table
from crysxpp_mm.errors import DataError

if TYPE_CHECKING:
    from crysxpp_mm.data.sources import Payload
    from crysxpp_mm.featurizers import CrysAEFeaturizer

BLOCK = 256
"""Structures that are parsed and featurized at a time."""


def featurize(
    source: Source,
    out: Annotated[
        Path,
        typer.Option(
            help=f"Table to write: {', '.join(OUTPUT_SUFFIXES)}. It keeps the other columns of a "
            "table."
        ),
    ] = Path("columns.csv"),
    column: Column = None,
    model: Model = None,
    ignore_errors: Annotated[
        bool,
        typer.Option(
            "--ignore-errors",
            help="Keep what fails as a row without numbers, with the reason in the column 'error'.",
        ),
    ] = False,
    data_home: DataHome = None,
) -> None:
    """Make learned columns from structures.

    \b
    Examples:
      crysxpp featurize my_cifs/ --out columns.csv
      crysxpp featurize table.csv --column cif --out columns.csv.gz --ignore-errors
      crysxpp featurize elastic_tensor_2015 --data-home matminer_data --out columns.csv
    """
    check_output(out)
    from tqdm.auto import tqdm

    from crysxpp_mm.data.sources import open_structures

    found, column = find_source(source, column, data_home)
    entries = open_structures(found, column=column)
    from crysxpp_mm.featurizers import CrysAEFeaturizer

    featurizer = CrysAEFeaturizer(model=model) if model else CrysAEFeaturizer()
    labels = featurizer.feature_labels()
    start = time.perf_counter()
    rows: list[list[float]] = []
    errors: list[str] = []
    payloads = iter(entries)
    with tqdm(total=len(entries), desc="structures", unit="") as bar:
        while block := list(islice(payloads, BLOCK)):
            for payload, row, error in _featurize_block(featurizer, block):
                if error and not ignore_errors:
                    raise DataError(
                        f"{payload.name}: {error} (--ignore-errors keeps its row, without "
                        "numbers, and goes on.)"
                    )
                rows.append(row)
                errors.append(error)
                bar.update()
    seconds = time.perf_counter() - start
    failed = {name: error for name, error in zip(entries.names, errors, strict=True) if error}
    if all(errors):
        name, error = next(iter(failed.items()))
        raise DataError(f"{entries.label}: no structure could be featurized; {name}: {error}")
    table = join_columns(entries, rows, labels, errors if ignore_errors else None)
    write_table(table, out)
    typer.echo(
        f"{len(entries) - errors.count('')} of {len(entries)} structures failed."
        if failed
        else f"{len(entries)} structures featurized, none failed."
    )
    print_errors(failed, "the column 'error'")
    typer.echo(
        f"{len(labels)} columns each ({labels[0]!r} ... {labels[-1]!r}), by {featurizer.model}, "
        f"in {seconds:.1f} s."
    )
    typer.echo(f"Wrote {out}: {len(table)} rows, {len(table.columns)} columns.")
    if entries.table is not None:
        typer.echo(f"The column {column!r} is not repeated in it.")


def _featurize_block(
    featurizer: CrysAEFeaturizer, block: list[Payload]
) -> Iterator[tuple[Payload, list[float], str]]:
    """Each payload with its numbers and, if they are NaN, the reason in one line."""
    from crysxpp_mm.data.sources import parse

    structures: list[Any] = []
    unread: dict[int, str] = {}
    for position, payload in enumerate(block):
        try:
            structures.append(parse(payload))
        except DataError as error:
            unread[position] = str(error).removeprefix(f"{payload.name}: ")
    rows = iter(
        featurizer.featurize_many(structures, ignore_errors=True, return_errors=True, pbar=False)
    )
    width = len(featurizer.feature_labels())
    for position, payload in enumerate(block):
        if position in unread:
            yield payload, [float("nan")] * width, one_line(unread[position])
        else:
            *numbers, text = next(rows)
            yield payload, numbers, reason(text) if isinstance(text, str) else ""
