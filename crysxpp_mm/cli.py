"""The command line: ``crysxpp --help``.

What a command needs is imported when it runs, so that the help is there at once.
"""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

import errno
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from gzip import GzipFile
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, TextIO

import typer
from typer.core import TyperGroup

from crysxpp_mm.errors import CrysXPPError, DataError, SettingsError
from crysxpp_mm.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from crysxpp_mm.data.sources import Payload, StructureSource
    from crysxpp_mm.data.store import GraphStore
    from crysxpp_mm.featurizers import CrysAEFeaturizer

OUTPUT_SUFFIXES = (".csv", ".csv.gz", ".json.gz")
"""Kinds of tables that ``featurize`` writes."""
BLOCK = 256
"""Structures that are parsed and featurized at a time."""
SHOWN_ERRORS = 10
"""Errors that ``featurize`` and ``graphs`` print; the rest are in the file."""

INTERRUPTED = 130


class _Commands(TyperGroup):
    """Ends errors of input in one line, and takes ``--debug`` anywhere."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("stopped.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (CrysXPPError, OSError) as error:
            pipe_is_closed = isinstance(error, OSError) and error.errno == errno.EPIPE
            if ctx.params.get("debug") or pipe_is_closed:
                raise
            typer.echo(f"error: {_one_line(str(error))}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    name="crysxpp",
    cls=_Commands,
    help="Learned features of crystals, for matminer and pymatgen. Start with: crysxpp demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
benchmarks = typer.Typer(
    help="Measure this package on real data.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(benchmarks, name="benchmark")

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


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"crysxpp {__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from; works anywhere.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Set up the log."""
    logging.basicConfig(
        level=logging.INFO if debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("crysxpp-demo"),
    model: Model = None,
) -> None:
    """Featurize and map the crystals in pymatgen.

    They are its AFLOW prototypes; no network and no other data are needed. Takes seconds.

    \b
    Example:
      crysxpp demo --out crysxpp-demo
    """
    from crysxpp_mm.demo import run_demo

    run_demo(out, model=model, say=typer.echo)


@app.command()
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
    _check_output(out)
    from tqdm.auto import tqdm

    from crysxpp_mm.data.sources import open_structures

    found, column = _find(source, column, data_home)
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
    table = _table(entries, rows, labels, errors if ignore_errors else None)
    _write_table(table, out)
    typer.echo(
        f"{len(entries) - errors.count('')} of {len(entries)} structures failed."
        if failed
        else f"{len(entries)} structures featurized, none failed."
    )
    _print_errors(failed, "the column 'error'")
    typer.echo(
        f"{len(labels)} columns each ({labels[0]!r} ... {labels[-1]!r}), by {featurizer.model}, "
        f"in {seconds:.1f} s."
    )
    typer.echo(f"Wrote {out}: {len(table)} rows, {len(table.columns)} columns.")
    if entries.table is not None:
        typer.echo(f"The column {column!r} is not repeated in it.")


@app.command()
def graphs(
    source: Source,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("crystals.graphs"),
    column: Column = None,
    num_workers: Workers = 0,
    ignore_errors: Annotated[
        bool,
        typer.Option("--ignore-errors", help="Leave out what has no graph; the file says why."),
    ] = False,
    data_home: DataHome = None,
) -> None:
    """Convert structures to a file of graphs.

    A data set is converted once and can then be trained on often (crysxpp pretrain).

    \b
    Example:
      crysxpp graphs crystals.zip --out crystals.graphs --num-workers 4
    """
    from crysxpp_mm.data.store import build_store

    found, column = _find(source, column, data_home)
    store = build_store(
        found, out, column=column, num_workers=num_workers, ignore_errors=ignore_errors
    )
    _describe_store(store, out)


@app.command()
def pretrain(
    data: Annotated[
        str,
        typer.Argument(
            help="A graph store (crysxpp graphs), or what it can be built from; then it is kept "
            "in the folder of the run.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder of the run; the same command goes on after an interruption."),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file of settings.  [default: those of crysae-mp-v1]",
            show_default=False,
        ),
    ] = None,
    column: Column = None,
    num_workers: Workers = 0,
    accelerator: Annotated[str, typer.Option(help="As Lightning takes it: cpu, gpu.")] = "cpu",
    devices: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    description: Annotated[
        str, typer.Option(help="A line on the data, kept with the weights.")
    ] = "",
    ignore_errors: Annotated[
        bool, typer.Option("--ignore-errors", help="Leave out crystals that have no graph.")
    ] = False,
    data_home: DataHome = None,
) -> None:
    """Pretrain CrysAE on structures.

    No labels are used. The same command goes on with an interrupted run.

    \b
    Example, with a file of settings that holds "hidden_dim: 32" and "max_epochs: 20":
      crysxpp pretrain crystals.zip --config small.yaml --out runs/small
    """
    from crysxpp_mm.training.config import PretrainConfig
    from crysxpp_mm.training.pretrain import MODEL
    from crysxpp_mm.training.pretrain import pretrain as run

    settings = PretrainConfig.from_file(config) if config else PretrainConfig()
    store = _training_store(
        data,
        out,
        column=column,
        num_workers=num_workers,
        ignore_errors=ignore_errors,
        data_home=data_home,
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its tips are no results
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # between Lightning and torch
    try:
        model = run(
            store.graphs,
            settings,
            out,
            converter=store.converter,
            data_hash=store.data_hash,
            description=description,
            accelerator=accelerator,
            devices=devices,
            num_workers=num_workers,
        )
    except FloatingPointError as error:
        raise SettingsError(str(error)) from error
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes it an exit
            typer.echo("The same command goes on from the last checkpoint.", err=True)
            raise KeyboardInterrupt from stop
        raise
    results = model.metadata["results"]
    typer.echo(
        f"\n{results['epochs']} epochs done, the best loss {results['best_loss']:.4g} in epoch "
        f"{results['best_epoch'] + 1}."
    )
    if "reconstruction" in results:
        n_held_out = model.metadata["n_validation"]
        typer.echo(f"Reconstruction of {n_held_out} crystals that were held out:")
        for line in _lines(results["reconstruction"]):
            typer.echo(f"  {line}")
    typer.echo(
        f"\nWrote to {out}: {MODEL}, run.json, curves.csv, curves.png\n"
        "Next:\n"
        f"  crysxpp featurize SOURCE --model {out / MODEL} --out columns.csv"
    )


@app.command()
def models() -> None:
    """List the models that come with the package.

    \b
    Example:
      crysxpp models
    """
    from crysxpp_mm import list_models

    typer.echo(list_models().drop(columns="path").to_string(index=False))


@benchmarks.command()
def speed(
    data: BenchmarkData = None,
    out: BenchmarkOut = Path("benchmark-results"),
    model: Model = None,
) -> None:
    """Measure how fast everything is.

    Columns, graphs, epochs and memory, beside matminer and pymatgen; about five minutes.

    \b
    Example:
      crysxpp benchmark speed --data DATA --out benchmark-results
    """
    from crysxpp_mm.benchmarks.speed import run_speed
    from crysxpp_mm.model_zoo import DEFAULT_MODEL

    run_speed(data, out=out, model=model or DEFAULT_MODEL, say=typer.echo)
    typer.echo(f"Wrote to {out}: speed.csv, speed.md")


@benchmarks.command()
def columns(
    data: BenchmarkData = None,
    out: BenchmarkOut = Path("benchmark-results"),
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A model by name or file; may be repeated.  [default: the shipped ones]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure what can be learned from the columns.

    Simple models on them, beside random weights and matminer's Magpie features; some twenty
    minutes. The same command goes on with a run that was stopped.

    \b
    Example:
      crysxpp benchmark columns --data DATA --out benchmark-results
    """
    from crysxpp_mm.benchmarks.columns import run_columns

    run_columns(data, out=out, models=model or None, say=typer.echo)
    typer.echo(f"Wrote to {out}.")


def _find(
    source: str, column: str | None, data_home: Path | None
) -> tuple[Path | pd.DataFrame, str]:
    """A path or a table, and the column of structures, from what was typed."""
    from crysxpp_mm.data.sources import STRUCTURE

    path = Path(source)
    if path.exists():
        return path, column or STRUCTURE
    if not re.fullmatch(r"\w+", source):
        raise DataError(f"{source}: there is no such file or folder.")
    from crysxpp_mm.datasets import load_table, structure_column

    try:
        table = load_table(source, data_home=data_home)
    except DataError as error:
        raise DataError(f"{source} is no file or folder here, and {error}") from error
    if column is None:
        column = STRUCTURE if STRUCTURE in table.columns else structure_column(table)
    return table, column


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
            yield payload, [float("nan")] * width, _one_line(unread[position])
        else:
            *numbers, text = next(rows)
            yield payload, numbers, _reason(text) if isinstance(text, str) else ""


def _reason(text: str) -> str:
    """The message at the end of a traceback's text, in one line."""
    starts = [match.end() for match in re.finditer(r"^[A-Za-z_][\w.]*: ", text, re.MULTILINE)]
    return _one_line(text[starts[-1] :] if starts else text.strip().splitlines()[-1])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _check_output(out: Path) -> None:
    if not out.name.endswith(OUTPUT_SUFFIXES):
        raise SettingsError(f"--out {out}: the name must end in {', '.join(OUTPUT_SUFFIXES)}.")
    if out.is_dir():
        raise SettingsError(f"--out {out} is a folder; name a file in it.")


def _table(
    entries: StructureSource,
    rows: list[list[float]],
    labels: list[str],
    errors: list[str] | None,
) -> pd.DataFrame:
    """What is written: the other columns or the names, the numbers, the errors."""
    import numpy as np
    import pandas as pd

    table = pd.DataFrame({"name": entries.names}) if entries.table is None else entries.table
    numbers = pd.DataFrame(
        np.array(rows, dtype=np.float32), columns=pd.Index(labels), index=table.index
    )
    parts = [table, numbers]
    if errors is not None:
        parts.append(pd.DataFrame({"error": errors}, index=table.index))
    new = [label for part in parts[1:] for label in part.columns]
    if taken := [label for label in new if label in table.columns]:
        raise DataError(f"{entries.label} has a column {taken[0]!r} already; rename or remove it.")
    return pd.concat(parts, axis=1)


def _write_table(table: pd.DataFrame, out: Path) -> None:
    """Write a table; the file appears under its name only when it is complete."""
    import pandas as pd

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    counted = table.index.equals(pd.RangeIndex(len(table)))
    try:
        with temporary.open("wb") as raw, _text(raw, packed=out.name.endswith(".gz")) as file:
            if ".csv" in out.suffixes[-2:]:
                plain = _plain(table, json.dumps)
                plain.to_csv(file, index=not counted, lineterminator="\n")
            else:
                plain = _plain(table, lambda cell: cell)
                plain.to_json(file, orient="split", double_precision=15)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


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
        cells.map(plain) if pd.api.types.is_object_dtype(cells) else cells
        for _, cells in table.items()
    ]
    return pd.concat(parts, axis=1)


def _print_errors(errors: dict[str, str], where: str) -> None:
    for name, error in islice(errors.items(), SHOWN_ERRORS):
        typer.echo(f"  {name}: {error}")
    if len(errors) > SHOWN_ERRORS:
        typer.echo(f"  ... and {len(errors) - SHOWN_ERRORS} more, in {where}.")


def _describe_store(store: GraphStore, path: Path) -> None:
    graphs = store.graphs
    typer.echo(
        f"{len(store)} crystals with {int(graphs.n_atoms.sum())} atoms and "
        f"{int(graphs.n_bonds.sum())} bonds; {len(store.errors)} left out."
    )
    _print_errors(store.errors, "the file")
    typer.echo(f"Graph store {path}: {path.stat().st_size / 1e6:.3g} MB, sha256 {store.data_hash}")


def _training_store(
    data: str,
    out: Path,
    *,
    column: str | None,
    num_workers: int,
    ignore_errors: bool,
    data_home: Path | None,
) -> GraphStore:
    """The graphs to train on: those given, those built before, or built now."""
    from crysxpp_mm.data.sources import open_structures
    from crysxpp_mm.data.store import SUFFIX, GraphStore, build_store

    if data.endswith(SUFFIX):
        return GraphStore.load(data)
    found, column = _find(data, column, data_home)
    path = out / f"data{SUFFIX}"
    if not path.exists():
        store = build_store(
            found, path, column=column, num_workers=num_workers, ignore_errors=ignore_errors
        )
        _describe_store(store, path)
        return store
    store = GraphStore.load(path)
    names = open_structures(found, column=column).names
    if set(names) != {*store.names, *store.errors}:
        raise DataError(
            f"{path} was built from other crystals than {data} holds; choose another --out, or "
            "remove the file."
        )
    typer.echo(f"Using {path}, built before; remove it to build it anew.")
    return store


def _lines(results: dict[str, Any]) -> Iterator[str]:
    """Numbers by name, nested ones behind the name of their group."""
    for name, value in results.items():
        if isinstance(value, dict):
            yield from (f"{name.replace('_', ' ')}, {line}" for line in _lines(value))
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else value
            yield f"{name.replace('_', ' ')}: {shown}"
