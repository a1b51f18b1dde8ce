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
CrystalSource = Annotated[
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
KeepDoubts = Annotated[
    bool,
    typer.Option(
        "--keep-doubts",
        help="Use crystals whose files leave something open, such as an occupancy of '?' or "
        "hydrogen that is in the formula only; the column 'note' says what.",
    ),
]
LeaveOut = Annotated[
    bool, typer.Option("--ignore-errors", help="Leave out crystals that have no graph.")
]
TableOut = Annotated[
    Path,
    typer.Option(
        help="Table to write: .csv, .csv.gz, .json.gz. It keeps the other columns of a table."
    ),
]
Accelerator = Annotated[str, typer.Option(help="As Lightning takes it: auto, cpu, gpu.")]
Devices = Annotated[int, typer.Option(min=1, help="How many of them.")]

# crysxpp train.
ModelOut = Annotated[Path, typer.Option(help="File of the model: .json.gz or .json.")]
Targets = Annotated[
    list[str],
    typer.Option(
        help="Column to learn; may be repeated for several properties at once.",
        show_default=False,
    ),
]
LabelTable = Annotated[
    Path | None,
    typer.Option(
        help="CSV or JSON table of the labels of a folder, a zip or a graph store.",
        show_default=False,
    ),
]
IdColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of --labels with the names of the files, without suffix.  "
        "[default: its first]",
        show_default=False,
    ),
]
Classify = Annotated[bool, typer.Option("--classify", help="The target is a class, not a number.")]
Transforms = Annotated[
    list[str] | None,
    typer.Option(
        help="Learn log10, log, log1p or sqrt of the target, or a nonnegative target, such as a "
        "band gap; for one of several targets NAME=log10. May be repeated.",
        show_default=False,
    ),
]
Units = Annotated[
    list[str] | None,
    typer.Option(
        help="Unit of the target, kept with the model; for one of several NAME=GPa. May be "
        "repeated.",
        show_default=False,
    ),
]
Pretrained = Annotated[
    str | None,
    typer.Option(
        help="Where the encoder starts: a shipped CrysAE by name, the file of a saved one, or none "
        "for random weights.  [default: the shipped default]",
        show_default=False,
    ),
]
EstimatorSettings = Annotated[
    Path | None,
    typer.Option(
        help="YAML or JSON file of settings of CrysXPPRegressor or CrysXPPClassifier that have no "
        "option here, such as batch_size.",
        show_default=False,
    ),
]
MaxEpochs = Annotated[int, typer.Option(min=1, help="Epochs at most.")]
Members = Annotated[
    int, typer.Option(min=1, help="Networks of the ensemble; their mean is the prediction.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of weights, splits and order.")]
ValidationFraction = Annotated[
    float,
    typer.Option(
        min=0,
        max=0.9,
        help="Share of the crystals that chooses the best epoch, if there are 200 or more.",
    ),
]
TestFraction = Annotated[
    float,
    typer.Option(
        min=0,
        max=0.9,
        help="Share of the crystals that is held out and read once, when the model is done.",
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        help="Column of the table, such as the formula; crystals with equal entries stay together "
        "when crystals are held out.",
        show_default=False,
    ),
]
CheckpointDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder for checkpoints; the same command goes on after an interruption.",
        show_default=False,
    ),
]
LeaveOutLabels = Annotated[
    bool,
    typer.Option(
        "--ignore-errors",
        help="Leave out crystals that have no graph and labels that the transform refuses.",
    ),
]

# crysxpp benchmark.
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
BenchmarkSeeds = Annotated[int, typer.Option(min=1, help="Seeds, from 0.")]
