"""``crysxpp benchmark``: a sub-command a measurement."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crysxpp_mm.cli import options

if TYPE_CHECKING:
    from crysxpp_mm.benchmarks.runner import Place

app = typer.Typer(
    help="Measure this package on real data.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _place(data: Path | None, out: Path, graphs: Path | None = None) -> Place:
    """Data and results of a benchmark, which tells what it does."""
    from crysxpp_mm.benchmarks.runner import Place

    return Place(root=data, graphs=graphs, out=out, say=typer.echo)


@app.command()
def speed(
    data: options.BenchmarkData = None,
    out: options.BenchmarkOut = Path("benchmark-results"),
    model: options.Model = None,
) -> None:
    """Measure how fast everything is.

    Columns, graphs, epochs and memory, beside matminer and pymatgen; about five minutes.

    \b
    Example:
      crysxpp benchmark speed --data DATA --out benchmark-results
    """
    from crysxpp_mm.benchmarks.speed import run_speed
    from crysxpp_mm.shipped import DEFAULT_MODEL

    run_speed(_place(data, out), model=model or DEFAULT_MODEL)


@app.command()
def columns(
    data: options.BenchmarkData = None,
    out: options.BenchmarkOut = Path("benchmark-results"),
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
    from crysxpp_mm.benchmarks.column_choice import run_choice
    from crysxpp_mm.benchmarks.columns import run_columns
    from crysxpp_mm.benchmarks.data import load_tables

    tables = load_tables(data)
    place = _place(data, out)
    run_columns(place, models=model or None, tables=tables)
    run_choice(place, model=model[0] if model else None, tables=tables)


@app.command()
def small_data(
    data: options.BenchmarkData = None,
    out: options.BenchmarkOut = Path("benchmark-results"),
    graphs: options.BenchmarkGraphs = None,
    properties: Annotated[
        list[str] | None,
        typer.Option(
            "--property",
            help="A property by name; may be repeated.  [default: all seven]",
            show_default=False,
        ),
    ] = None,
    seeds: options.BenchmarkSeeds = 3,
    n_members: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Networks of an ensemble.  [default: 3; of curves 1]",
            show_default=False,
        ),
    ] = None,
    curves: Annotated[
        bool, typer.Option("--curves", help="Error against the number of labels instead.")
    ] = False,
) -> None:
    """Measure how well CrysXPP learns from few labels.

    Seven properties from a fifth of their labels, with and without pretraining, beside simple
    models on learned and on Magpie columns. Takes hours; the same command goes on with a run that
    was stopped.

    \b
    Example:
      crysxpp benchmark small-data --data DATA --property "bulk modulus"
    """
    from crysxpp_mm.benchmarks import label_curves, small_data

    place = _place(data, out, graphs)
    if curves:
        names, members = properties or label_curves.PROPERTY_NAMES, n_members or 1
        run = label_curves.run_label_curves
        run(place, properties=names, seeds=range(seeds), n_members=members)
    else:
        members = n_members or small_data.N_MEMBERS
        small_data.run_small_data(
            place, properties=properties, seeds=range(seeds), n_members=members
        )


@app.command()
def pretraining(
    data: options.BenchmarkData = None,
    out: options.BenchmarkOut = Path("benchmark-results"),
    graphs: options.BenchmarkGraphs = None,
    runs: Annotated[Path, typer.Option(help="Folder of the pretrainings.")] = Path(
        "pretraining-runs"
    ),
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            help="A variant by name; may be repeated.  [default: all]",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each pretraining.")] = 5,
) -> None:
    """Measure what each choice of the pretraining is worth.

    Short pretrainings with one setting changed, judged by what simple models learn from their
    columns. Takes an hour; the same command goes on with a run that was stopped.

    \b
    Example:
      crysxpp benchmark pretraining --data DATA --graphs mp.graphs
    """
    from crysxpp_mm.benchmarks.pretraining import run_pretraining

    run_pretraining(_place(data, out, graphs), runs=runs, variants=variants, epochs=epochs)


@app.command()
def predictors(
    data: options.BenchmarkData = None,
    out: options.BenchmarkOut = Path("benchmark-results"),
    graphs: options.BenchmarkGraphs = None,
    folder: Annotated[Path, typer.Option(help="Where the predictors go, a folder each.")] = Path(
        "predictors"
    ),
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name", help="A predictor; may be repeated.  [default: all]", show_default=False
        ),
    ] = None,
    n_members: Annotated[
        int | None,
        typer.Option(min=1, help="Networks of each.  [default: one to five]", show_default=False),
    ] = None,
    max_epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs of each.  [default: 40]", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of split, weights and order.")] = 0,
) -> None:
    """Train and test the predictors that the package ships.

    80 % of the labels are learned from, 10 % choose the epoch, 10 % are the test. Takes hours;
    predictors that are in the folder are kept, and the same command goes on with a run that was
    stopped.

    \b
    Example:
      crysxpp benchmark predictors --data DATA --name crysxpp-bulk-modulus --folder predictors
    """
    from crysxpp_mm.benchmarks.predictors import run_predictors

    run_predictors(
        _place(data, out, graphs),
        folder=folder,
        names=names,
        n_members=n_members,
        max_epochs=max_epochs,
        seed=seed,
    )


@app.command()
def calibrate_shipped(
    data: options.BenchmarkData = None,
    out: options.BenchmarkOut = Path("benchmark-results"),
    graphs: options.BenchmarkGraphs = None,
    folder: Annotated[Path, typer.Option(help="Where the predictors are, a folder each.")] = Path(
        "pretrained"
    ),
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name", help="A predictor; may be repeated.  [default: all]", show_default=False
        ),
    ] = None,
) -> None:
    """Measure intervals and domain of the shipped predictors anew.

    From the splits of their seeds; weights and predictions stay. Minutes a predictor.

    \b
    Example:
      crysxpp benchmark calibrate-shipped --data DATA --graphs mp.graphs
    """
    from crysxpp_mm.benchmarks.predictors import calibrate_shipped as run

    run(_place(data, out, graphs), folder=folder, names=names)


@app.command()
def reliability(
    data: options.BenchmarkData = None,
    out: options.BenchmarkOut = Path("benchmark-results"),
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target", help="A target; may be repeated.  [default: all five]", show_default=False
        ),
    ] = None,
    n_splits: Annotated[int, typer.Option(min=1, help="Random splits of each table.")] = 20,
    models: Annotated[Path, typer.Option(help="Folder of the fitted models.")] = Path(
        "reliability-models"
    ),
    docs: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("docs"),
) -> None:
    """Measure whether intervals hold the truth as often as they say.

    Coverage, widths and domain on five tables; a minute a split. The same command goes on with a
    run that was stopped.

    \b
    Example:
      crysxpp benchmark reliability --data DATA --n-splits 3
    """
    from crysxpp_mm.benchmarks.reliability import TARGET_NAMES, run_reliability

    run_reliability(
        _place(data, out),
        targets=targets or TARGET_NAMES,
        n_splits=n_splits,
        models=models,
        docs=docs,
    )


@app.command()
def experiment(
    data: options.BenchmarkData = None,
    out: options.BenchmarkOut = Path("benchmark-results"),
    graphs: options.BenchmarkGraphs = None,
    models: Annotated[Path, typer.Option(help="Folder of the DFT models.")] = Path(
        "experiment-models"
    ),
    properties: Annotated[
        list[str] | None,
        typer.Option(
            "--property",
            help='"formation energy" or "band gap".  [default: both]',
            show_default=False,
        ),
    ] = None,
    seeds: options.BenchmarkSeeds = 3,
    max_epochs: Annotated[int, typer.Option(min=1, help="Epochs of every fit.")] = 40,
) -> None:
    """Measure what experiments add to a model that has learned DFT.

    Formation energies and band gaps, beside the DFT value itself, experiments alone and as many
    further DFT labels. Takes an hour or two; the same command goes on with a run that was stopped.

    \b
    Example:
      crysxpp benchmark experiment --data DATA --property "formation energy"
    """
    from crysxpp_mm.benchmarks.experiment import run_experiment
    from crysxpp_mm.estimators import CrysXPPRegressor

    run_experiment(
        _place(data, out, graphs),
        models=models,
        properties=properties,
        seeds=range(seeds),
        estimator=CrysXPPRegressor(max_epochs=max_epochs),
    )


@app.command()
def ablations(
    data: options.BenchmarkData = None,
    out: options.BenchmarkOut = Path("benchmark-results"),
    graphs: options.BenchmarkGraphs = None,
    seeds: options.BenchmarkSeeds = 3,
) -> None:
    """Measure what each part of CrysXPP is worth.

    The selector, its sparsity, the encoder and the read-out, one setting changed at a time; about
    an hour. The same command goes on with a run that was stopped.

    \b
    Example:
      crysxpp benchmark ablations --data DATA --graphs mp.graphs
    """
    from crysxpp_mm.benchmarks.ablations import run_ablations

    run_ablations(_place(data, out, graphs), seeds=range(seeds))


@app.command()
def explanations(
    data: options.BenchmarkData = None,
    graphs: options.BenchmarkGraphs = None,
    out: options.BenchmarkOut = Path("benchmark-results"),
) -> None:
    """Explain the crystals of the article's Figs. 4-6, and draw the L1 path.

    The weights that they switch on in the shipped predictors, as pictures, and contributions;
    then the weights of the selector against the weight of the L1 term, which takes minutes.

    \b
    Example:
      crysxpp benchmark explanations --data DATA --graphs mp.graphs
    """
    from crysxpp_mm.benchmarks.explanations import run_explanations

    run_explanations(_place(data, out, graphs))
