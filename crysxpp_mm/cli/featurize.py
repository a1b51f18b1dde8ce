"""``crysxpp featurize``."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crysxpp_mm.cli.inputs import find_source
from crysxpp_mm.cli.messages import one_line, print_errors, reason
from crysxpp_mm.cli.options import Column, DataHome, KeepErrors, Model, Parsers, Source
from crysxpp_mm.cli.tables import OUTPUT_SUFFIXES, check_output, join_columns, write_table
from crysxpp_mm.errors import DataError

if TYPE_CHECKING:
    from crysxpp_mm.data.sources import Parsed
    from crysxpp_mm.featurizers import CrysAEFeaturizer


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
    ignore_errors: KeepErrors = False,
    num_workers: Parsers = 0,
    data_home: DataHome = None,
) -> None:
    """Make learned columns from structures.

    \b
    Examples:
      crysxpp featurize my_cifs/ --out columns.csv
      crysxpp featurize table.csv --column cif --out columns.csv.gz --ignore-errors
      crysxpp featurize crystals.zip --out columns.csv --num-workers 4
      crysxpp featurize elastic_tensor_2015 --data-home matminer_data --out columns.csv
    """
    check_output(out)
    import numpy as np
    import pandas as pd
    from tqdm.auto import tqdm

    from crysxpp_mm.data.sources import open_structures, parse_blocks

    found, column = find_source(source, column, data_home)
    entries = open_structures(found, column=column)
    from crysxpp_mm.featurizers import CrysAEFeaturizer

    featurizer = CrysAEFeaturizer(model=model) if model else CrysAEFeaturizer()
    labels = featurizer.feature_labels()
    start = time.perf_counter()
    rows: list[list[float]] = []
    errors: list[str] = []
    with tqdm(total=len(entries), desc="structures", unit="") as bar:
        for block in parse_blocks(entries, num_workers=num_workers):
            for name, row, error in _featurize_block(featurizer, block):
                if error and not ignore_errors:
                    raise DataError(
                        f"{name}: {error} (--ignore-errors keeps its row, without numbers, and "
                        "goes on.)"
                    )
                rows.append(row)
                errors.append(error)
                bar.update()
    seconds = time.perf_counter() - start
    failed = {name: error for name, error in zip(entries.names, errors, strict=True) if error}
    if all(errors):
        name, error = next(iter(failed.items()))
        raise DataError(f"{entries.label}: no structure could be featurized; {name}: {error}")
    table = join_columns(
        entries.names,
        entries.table,
        pd.DataFrame(np.array(rows, dtype=np.float32), columns=pd.Index(labels)),
        errors if ignore_errors else None,
        label=entries.label,
    )
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
    if entries.table is not None and column not in entries.table:
        typer.echo(f"The column {column!r} is not repeated in it.")


def _featurize_block(
    featurizer: CrysAEFeaturizer, block: Parsed
) -> Iterator[tuple[str, list[float], str]]:
    """The name of each structure, its numbers and, if they are NaN, the reason in one line."""
    rows = iter(
        featurizer.featurize_many(
            block.structures, ignore_errors=True, return_errors=True, pbar=False
        )
    )
    width = len(featurizer.feature_labels())
    for position, name in enumerate(block.names):
        if position in block.errors:
            yield name, [float("nan")] * width, one_line(block.errors[position])
        else:
            *numbers, text = next(rows)
            yield name, numbers, reason(text) if isinstance(text, str) else ""
