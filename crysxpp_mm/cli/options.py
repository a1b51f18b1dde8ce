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
Crystals = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder or zip of CIF, POSCAR or pymatgen JSON files, one such file, a CSV or JSON "
        "table, the name of one of matminer's data sets, or a graph store (crysxpp graphs).",
        show_default=False,
    ),
]
Predictor = Annotated[
    str,
    typer.Option(
        "--model", help="File of a model that crysxpp train wrote, or a shipped one's name."
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
Parsers = Annotated[
    int, typer.Option("--num-workers", min=0, help="Processes that parse files beside this one.")
]
KeepErrors = Annotated[
    bool,
    typer.Option(
        "--ignore-errors",
        help="Keep what fails as a row without numbers, with the reason in the column 'error'.",
    ),
]
BenchmarkData = Annotated[
    Path | None,
    typer.Option(help="Folder of the data.  [default: what CRYSXPP_DATA names]"),
]
BenchmarkOut = Annotated[Path, typer.Option(help="Folder of the results.")]
BenchmarkGraphs = Annotated[
    Path | None,
    typer.Option(
        "--graphs",
        help="File of the graphs of mp_structures.zip; built if absent.  [default: mp.graphs here]",
        show_default=False,
    ),
]
