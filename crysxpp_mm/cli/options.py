"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A shipped model by name (crysxpp models) or the file of a saved one.  "
        "[default: the shipped default]",
    ),
]
Source = Annotated[
    str,
    typer.Argument(
        help="A folder or zip of CIF, POSCAR or pymatgen JSON files, one such file, a CSV or JSON "
        "table, or the name of one of matminer's data sets.",
        show_default=False,
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        help="Column of a table that holds structures, CIF text, or paths of files beside the "
        "table.  [default: structure]",
        show_default=False,
    ),
]
DataHome = Annotated[
    Path | None,
    typer.Option(
        help="Folder of matminer's data sets.  [default: what MATMINER_DATA names]",
        show_default=False,
    ),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes beside this one.")]
BenchmarkData = Annotated[
    Path | None,
    typer.Option(help="Folder of the data.  [default: what CRYSXPP_DATA names]"),
]
BenchmarkOut = Annotated[Path, typer.Option(help="Folder of the results.")]
