"""``crysxpp graphs``."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crysxpp_mm.cli.inputs import find_source
from crysxpp_mm.cli.messages import print_errors
from crysxpp_mm.cli.options import Column, DataHome, KeepDoubts, Source, Workers
from crysxpp_mm.cli.tables import check_writable

if TYPE_CHECKING:
    from crysxpp_mm.data.store import GraphStore


def graphs(
    source: Source,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("crystals.graphs"),
    column: Column = None,
    num_workers: Workers = 0,
    ignore_errors: Annotated[
        bool,
        typer.Option("--ignore-errors", help="Leave out what has no graph; the file says why."),
    ] = False,
    keep_doubts: KeepDoubts = False,
    data_home: DataHome = None,
) -> None:
    """Convert structures to a file of graphs.

    A data set is converted once and can then be trained on often (crysxpp pretrain).

    \b
    Example:
      crysxpp graphs crystals.zip --out crystals.graphs --num-workers 4
    """
    from crysxpp_mm.data.store import build_store

    check_writable(out)
    found, column = find_source(source, column, data_home)
    store = build_store(
        found,
        out,
        column=column,
        num_workers=num_workers,
        ignore_errors=ignore_errors,
        keep_doubts=keep_doubts,
    )
    describe_store(store, out)


def describe_store(store: GraphStore, path: Path) -> None:
    """Tell what a file of graphs holds."""
    graphs = store.graphs
    typer.echo(
        f"{len(store)} crystals with {int(graphs.n_atoms.sum())} atoms and "
        f"{int(graphs.n_bonds.sum())} bonds; {len(store.errors)} left out."
    )
    print_errors(store.errors, "the file")
    if store.notes:
        typer.echo(f"{len(store.notes)} crystals with a note on their file:")
        print_errors(store.notes, "the file")
    typer.echo(f"Graph store {path}: {path.stat().st_size / 1e6:.3g} MB, sha256 {store.data_hash}")
