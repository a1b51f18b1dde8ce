"""``crysxpp predict``: a table of predictions."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crysxpp_mm.cli import options
from crysxpp_mm.cli.inputs import open_crystals
from crysxpp_mm.cli.rows import Block, compute_rows, write_rows
from crysxpp_mm.cli.tables import check_output
from crysxpp_mm.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crysxpp_mm.cli.inputs import GraphBlock
    from crysxpp_mm.graph.arrays import CrystalGraphs


def predict(
    source: options.CrystalSource,
    model: options.Predictor,
    out: options.TableOut = Path("predictions.csv"),
    column: options.Column = None,
    std: Annotated[
        bool,
        typer.Option("--std", help="Add the standard deviation over the members of the ensemble."),
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(
            help="Add the ends of an interval that holds the true value with this probability, "
            "such as 0.9; of classes, those of a set that holds the true one.",
            show_default=False,
        ),
    ] = None,
    domain: Annotated[
        bool,
        typer.Option("--domain", help="Add how far each crystal is from those learned from."),
    ] = False,
    ignore_errors: options.KeepErrors = False,
    keep_doubts: options.KeepDoubts = False,
    num_workers: options.Parsers = 0,
    data_home: options.DataHome = None,
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
    estimator = load_predictor(model)
    if hasattr(estimator, "classes_"):
        if std:
            raise SettingsError(f"{model} predicts classes; --std is for numbers.")
        _check_interval(estimator, model, interval)
        columns_of = partial(_classes, estimator, interval=interval)
    else:
        _check_numbers(estimator, model, std=std, interval=interval)
        columns_of = partial(_numbers, estimator, std=std, interval=interval)
    crystals = open_crystals(source, column, data_home)
    graphs = crystals.graphs(estimator.converter_, num_workers=num_workers, keep_doubts=keep_doubts)
    rows = compute_rows(
        (_predict_block(estimator, block, columns_of, domain=domain) for block in graphs),
        crystals,
        ignore_errors=ignore_errors,
        unit="crystals",
        done="nothing could be predicted",
    )
    write_rows(
        rows,
        crystals,
        out,
        ignore_errors=ignore_errors,
        unit="crystals predicted",
        what=f"Columns: {', '.join(map(repr, rows.columns.columns))}",
    )


def load_predictor(name: str, *, can: str = "predict") -> Any:
    """Load a fitted estimator by the name or file of its model.

    Args:
        name: As typed.
        can: Method that it must have.

    Raises:
        UnknownModelError, ModelFileError: there is no such model, or it is damaged.
        SettingsError: it lacks the method, or it has learned nothing.
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
    if not hasattr(model, can):
        raise SettingsError(f"{name}: the class {kind} cannot {can} its predictions.")
    return model


def _check_numbers(estimator: Any, name: str, *, std: bool, interval: float | None) -> None:
    """Raise if the model cannot give what is asked for."""
    if std and len(estimator.members_) < 2:
        raise SettingsError(
            f"{name} is one network; --std needs an ensemble (crysxpp train --n-members 5)."
        )
    _check_interval(estimator, name, interval)


def _check_interval(estimator: Any, name: str, interval: float | None) -> None:
    """Raise if the model has no intervals."""
    if interval is not None and estimator.calibration_ is None:
        raise SettingsError(
            f"{name} has no calibration crystals, which --interval needs: train it with more "
            "labels, of which a share is held out (crysxpp train --validation-fraction)."
        )


def _predict_block(
    estimator: Any,
    block: GraphBlock,
    columns_of: Callable[[CrystalGraphs], dict[str, Any]],
    *,
    domain: bool,
) -> Block:
    """Predict the crystals of a block that have a graph."""
    import pandas as pd

    if not block.rows:
        return Block(block.names, pd.DataFrame(), block.errors, block.notes)
    table = pd.DataFrame(columns_of(block.graphs))
    if domain:
        more = estimator.domain(block.graphs).drop(columns=table.columns, errors="ignore")
        table = pd.concat([table, more], axis=1)
    return Block(block.names, table.set_axis(block.rows), block.errors, block.notes)


def _classes(estimator: Any, graphs: CrystalGraphs, *, interval: float | None) -> dict[str, Any]:
    """Classes, their probabilities, and sets of them if asked for."""
    predicted = estimator.predict(graphs).astype(object)  # whole numbers stay so beside gaps
    chances = zip(estimator.classes_, estimator.predict_proba(graphs).T, strict=True)
    columns = {
        f"{estimator.target_names_[0]} predicted": predicted,
        **{f"probability of {name}": values for name, values in chances},
    }
    if interval is not None:
        sets = estimator.predict_set(graphs, confidence=interval)
        columns |= {f"{name} in set": sets[name].to_numpy() for name in estimator.classes_}
        columns["in_domain"] = sets["in_domain"].to_numpy()
    return columns


def _numbers(
    estimator: Any, graphs: CrystalGraphs, *, std: bool, interval: float | None
) -> dict[str, Any]:
    """Values, with their spread and interval if asked for."""
    found = estimator.predict(graphs, return_std=std)
    columns: dict[str, Any] = {}
    blocks = [part.reshape(len(graphs), -1).T for part in (found if std else (found,))]
    for name, *values in zip(estimator.target_names_, *blocks, strict=True):
        columns |= dict(zip((f"{name} predicted", f"{name} std"), values, strict=False))
    if interval is not None:
        columns |= _interval(estimator, graphs, interval)
    return columns


def _interval(estimator: Any, graphs: CrystalGraphs, confidence: float) -> dict[str, Any]:
    """Ends of the intervals, in the order of the targets, and whether they can be relied on."""
    table = estimator.predict_interval(graphs, confidence=confidence)
    names = estimator.target_names_
    parts = {name: table if len(names) == 1 else table[name] for name in names}
    columns = {
        f"{name} {end}": part[end].to_numpy()
        for name, part in parts.items()
        for end in ("lower", "upper")
    }
    return {**columns, "in_domain": parts[names[0]]["in_domain"].to_numpy()}
