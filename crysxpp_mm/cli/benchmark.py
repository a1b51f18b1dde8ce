"""``crysxpp benchmark``: a sub-command a measurement."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crysxpp_mm.cli.options import BenchmarkData, BenchmarkOut, Model

app = typer.Typer(
    help="Measure this package on real data.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
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


@app.command()
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
