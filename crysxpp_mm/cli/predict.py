"""``crysxpp predict``: a table of predictions."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crysxpp_mm.cli.inputs import open_crystals
from crysxpp_mm.cli.messages import one_line, print_errors
from crysxpp_mm.cli.options import Column, Crystals, DataHome, KeepErrors, Parsers, Predictor
from crysxpp_mm.cli.tables import OUTPUT_SUFFIXES, check_output, join_columns, write_table
from crysxpp_mm.errors import DataError, SettingsError

if TYPE_CHECKING:
    import pandas as pd

    from crysxpp_mm.graph.arrays import CrystalGraphs


def predict(
    source: Crystals,
    model: Predictor,
    out: Annotated[
        Path,
        typer.Option(
            help=f"Table to write: {', '.join(OUTPUT_SUFFIXES)}. It keeps the other columns of a "
            "table."
        ),
    ] = Path("predictions.csv"),
    column: Column = None,
    std: Annotated[
        bool,
        typer.Option("--std", help="Add the standard deviation over the members of the ensemble."),
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(
            help="Add the ends of an interval that holds the true value with this probability, "
            "such as 0.9.",
            show_default=False,
        ),
    ] = None,
    domain: Annotated[
        bool,
        typer.Option("--domain", help="Add how far each crystal is from those learned from."),
    ] = False,
    ignore_errors: KeepErrors = False,
    num_workers: Parsers = 0,
    data_home: DataHome = None,
) -> None:
    """Predict properties of crystals.

    A model of numbers gives a column for each target, in the units of the labels; a model of
    classes gives the most probable class and the probability of each.

    \b
    Examples:
      crysxpp predict my_cifs/ --model model.json.gz --out predictions.csv
      crysxpp predict table.csv --column cif --model model.json.gz --interval 0.9 --ignore-errors
    """
    check_output(out)
    if interval is not None and not 0 < interval < 1:
        raise SettingsError(f"--interval must lie between 0 and 1, got {interval:g}.")
    import pandas as pd
    from tqdm.auto import tqdm

    estimator = load_predictor(model)
    if hasattr(estimator, "classes_") and (std or interval is not None):
        raise SettingsError(f"{model} predicts classes; --std and --interval are for numbers.")
    if std and len(estimator.members_) < 2:
        raise SettingsError(
            f"{model} is one network; --std needs an ensemble (crysxpp train --n-members 5)."
        )
    if interval is not None and estimator.calibration_ is None:
        raise SettingsError(
            f"{model} has no calibration crystals, which --interval needs: train it with more "
            "labels, of which a share is held out (crysxpp train --validation-fraction)."
        )
    crystals = open_crystals(source, column, data_home)
    start = time.perf_counter()
    parts: list[pd.DataFrame] = []
    errors: list[str] = []
    with tqdm(total=len(crystals), desc="crystals", unit="") as bar:
        for block in crystals.graphs(estimator.converter_, num_workers=num_workers):
            for position, error in block.errors.items():
                if not ignore_errors:
                    raise DataError(
                        f"{block.names[position]}: {one_line(error)} (--ignore-errors keeps its "
                        "row, without numbers, and goes on.)"
                    )
            errors += [one_line(block.errors.get(row, "")) for row in range(len(block.names))]
            found = pd.DataFrame()
            if block.rows:
                found = _predictions(
                    estimator, block.graphs, std=std, interval=interval, domain=domain
                ).set_axis(block.rows)
            parts.append(found.reindex(range(len(block.names))))
            bar.update(len(block.names))
    seconds = time.perf_counter() - start
    failed = {name: error for name, error in zip(crystals.names, errors, strict=True) if error}
    if all(errors):
        name, error = next(iter(failed.items()))
        raise DataError(f"{crystals.label}: nothing could be predicted; {name}: {error}")
    columns = pd.concat(parts, ignore_index=True)
    table = join_columns(
        crystals.names,
        crystals.table,
        columns,
        errors if ignore_errors else None,
        label=crystals.label,
    )
    write_table(table, out)
    typer.echo(
        f"{len(failed)} of {len(crystals)} crystals failed."
        if failed
        else f"{len(crystals)} crystals predicted, none failed."
    )
    print_errors(failed, "the column 'error'")
    typer.echo(f"Columns: {', '.join(map(repr, columns.columns))}, in {seconds:.1f} s.")
    typer.echo(f"Wrote {out}: {len(table)} rows, {len(table.columns)} columns.")
    if crystals.table is not None and crystals.column not in crystals.table:
        typer.echo(f"The column {crystals.column!r} is not repeated in it.")


def load_predictor(name: str) -> Any:
    """A fitted estimator by the name or file of its model.

    Raises:
        UnknownModelError, ModelFileError: there is none, or it is damaged.
        SettingsError: it is no predictor, or it has learned nothing.
    """
    from crysxpp_mm.model_zoo import load_model

    model = load_model(name)
    kind = type(model).__name__
    if not hasattr(model, "predict"):
        raise SettingsError(
            f"{name} is a {kind}, which predicts no property; crysxpp train makes a predictor."
        )
    if not model.__sklearn_is_fitted__():
        raise SettingsError(f"{name} is a {kind} that has learned nothing yet.")
    return model


def _predictions(
    estimator: Any,
    graphs: CrystalGraphs,
    *,
    std: bool,
    interval: float | None,
    domain: bool,
) -> pd.DataFrame:
    """The columns of some crystals."""
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {}
    if hasattr(estimator, "classes_"):
        classes = estimator.predict(graphs).astype(object)  # whole numbers stay so beside gaps
        columns[f"{estimator.target_names_[0]} predicted"] = classes
        for name, values in zip(estimator.classes_, estimator.predict_proba(graphs).T, strict=True):
            columns[f"probability of {name}"] = values
    else:
        predicted = estimator.predict(graphs, return_std=std)
        values, spread = predicted if std else (predicted, None)
        for number, name in enumerate(estimator.target_names_):
            columns[f"{name} predicted"] = np.reshape(values, (len(graphs), -1))[:, number]
            if spread is not None:
                columns[f"{name} std"] = np.reshape(spread, (len(graphs), -1))[:, number]
        if interval is not None:
            columns |= _interval(estimator, graphs, interval)
    table = pd.DataFrame(columns)
    if domain:
        table = pd.concat([table, estimator.domain(graphs).reset_index(drop=True)], axis=1)
    return table


def _interval(estimator: Any, graphs: CrystalGraphs, confidence: float) -> dict[str, Any]:
    """The ends of the intervals, in the order of the targets."""
    table = estimator.predict_interval(graphs, confidence=confidence)
    names = estimator.target_names_
    return {
        f"{name} {end}": (table[end] if len(names) == 1 else table[name, end]).to_numpy()
        for name in names
        for end in ("lower", "upper")
    }
