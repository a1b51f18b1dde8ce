"""``crysxpp explain``: why a model predicts what it predicts."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crysxpp_mm.cli.inputs import find_source
from crysxpp_mm.cli.messages import one_line, print_errors
from crysxpp_mm.cli.options import Column, DataHome, Predictor, Source
from crysxpp_mm.cli.predict import load_predictor
from crysxpp_mm.cli.tables import check_writable, write_table
from crysxpp_mm.errors import DataError, SettingsError, StructureError, StructureTypeError

if TYPE_CHECKING:
    import pandas as pd

    from crysxpp_mm.data.sources import StructureLike, StructureSource
    from crysxpp_mm.explain import Contributions

WEIGHTS, CONTRIBUTIONS = "weights", "contributions"
"""Names of the tables, and of the pictures behind the crystal's."""
LEFT_OUT = "left_out.csv"


def explain(
    source: Source,
    model: Predictor,
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("explanation"),
    column: Column = None,
    contributions: Annotated[
        bool,
        typer.Option(
            "--contributions",
            help="Also what each site and property adds to the prediction.",
        ),
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            help="Target, or class, of the contributions; needed if there are several.",
            show_default=False,
        ),
    ] = None,
    plots: Annotated[
        int, typer.Option(min=0, help="Draw pictures of so many crystals, the first ones.")
    ] = 10,
    ignore_errors: Annotated[
        bool, typer.Option("--ignore-errors", help="Leave out what is no crystal.")
    ] = False,
    data_home: DataHome = None,
) -> None:
    """Explain predictions: which properties of the elements matter to the model.

    Writes weights.csv, the selector's weight of every element of a crystal and property, and a
    picture of them for each crystal; with --contributions also contributions.csv and pictures.
    What an earlier run has written into the folder is replaced.

    \b
    Examples:
      crysxpp explain perovskite.cif --model model.json.gz --contributions
      crysxpp explain table.csv --column cif --model model.json.gz --plots 3 --out why
    """
    if out.exists() and not out.is_dir():
        raise SettingsError(f"--out {out} is a file; give a folder to write into.")
    check_writable(out / LEFT_OUT)
    if target is not None and not contributions:
        raise SettingsError("--target goes with --contributions; the weights are of all targets.")
    import pandas as pd
    from tqdm.auto import tqdm

    from crysxpp_mm.data.sources import open_structures
    from crysxpp_mm.plots import plot_contributions, plot_explanation

    estimator = load_predictor(model)
    _ = estimator.feature_weights_  # an error at once where there is no selector
    found, column = find_source(source, column, data_home)
    entries = open_structures(found, column=column)
    weights: list[pd.DataFrame] = []
    parts: list[pd.DataFrame] = []
    shown: list[tuple[str, pd.DataFrame, Contributions | None]] = []
    errors: dict[str, str] = {}
    for name, structure in tqdm(_structures(entries, errors), total=len(entries), desc="crystals"):
        try:
            if structure is None:
                raise StructureError(errors[name])
            explanation = estimator.explain(structure)
        except (StructureError, StructureTypeError) as error:
            errors[name] = one_line(str(error))
            if not ignore_errors:
                raise DataError(
                    f"{name}: {errors[name]} (--ignore-errors leaves such crystals out.)"
                ) from error
            continue
        weights.append(_weights_table(name, explanation))
        added = None
        if contributions:
            added = estimator.contributions(structure, target=target)
            parts.append(_contributions_table(name, added))
        if len(shown) < plots:
            shown.append((name, explanation, added))
    if not weights:
        name, text = next(iter(errors.items()))
        raise DataError(f"{entries.label}: nothing could be explained; {name}: {text}")
    _remove_earlier(out)
    tables = {WEIGHTS: weights, CONTRIBUTIONS: parts}
    written = [kind for kind, rows in tables.items() if rows]
    for kind in written:
        write_table(pd.concat(tables[kind], ignore_index=True), out / f"{kind}.csv")
    files = [f"{kind}.csv" for kind in written]
    if errors:
        files.append(LEFT_OUT)
        left_out = {"crystal": list(errors), "reason": list(errors.values())}
        write_table(pd.DataFrame(left_out), out / LEFT_OUT)
    explained = "1 crystal explained" if len(weights) == 1 else f"{len(weights)} crystals explained"
    typer.echo(f"{explained}, {len(errors)} left out." if errors else f"{explained}.")
    print_errors(errors, LEFT_OUT)
    pictures = _picture_names([name for name, _, _ in shown])
    for picture, (_, explanation, added) in zip(pictures, shown, strict=True):
        _save(plot_explanation(explanation), out / f"{picture}.{WEIGHTS}.png")
        if added is not None:
            _save(plot_contributions(added), out / f"{picture}.{CONTRIBUTIONS}.png")
    typer.echo(f"Wrote to {out}: {', '.join(files)}, {len(shown) * len(written)} pictures.")


def _structures(
    entries: StructureSource, errors: dict[str, str]
) -> Iterator[tuple[str, StructureLike | None]]:
    """Each structure by its name; None, and an entry in ``errors``, for what is none."""
    from crysxpp_mm.data.sources import parse

    for payload in entries:
        try:
            structure = parse(payload)
        except DataError as error:
            errors[payload.name] = str(error).removeprefix(f"{payload.name}: ")
            yield payload.name, None
        else:
            yield payload.name, structure


def _save(axes: Any, path: Path) -> None:
    axes.figure.savefig(path)


def _remove_earlier(out: Path) -> None:
    """Remove what this command has written into the folder before."""
    for kind in (WEIGHTS, CONTRIBUTIONS):
        for path in (out / f"{kind}.csv", *out.glob(f"*.{kind}.png")):
            path.unlink(missing_ok=True)
    (out / LEFT_OUT).unlink(missing_ok=True)


def _picture_names(names: list[str]) -> list[str]:
    """Names of files from those of crystals, with a number where two would be equal."""
    chosen: list[str] = []
    for name in names:
        plain = candidate = re.sub(r"[^\w.+-]+", "_", name)
        number = 1
        while candidate in chosen:
            number += 1
            candidate = f"{plain}-{number}"
        chosen.append(candidate)
    return chosen


def _weights_table(name: str, explanation: pd.DataFrame) -> pd.DataFrame:
    """One row an element and property."""
    import pandas as pd

    from crysxpp_mm.elements import PROPERTIES, element_properties

    rows = []
    for element, weights in explanation.iterrows():
        bins = element_properties(str(element))
        rows += [
            {
                "crystal": name,
                "element": element,
                "property": item.name,
                "bin": bins[item.name],
                "unit": item.unit,
                "weight": weights[item.name],
            }
            for item in PROPERTIES
        ]
    return pd.DataFrame(rows)


def _contributions_table(name: str, added: Contributions) -> pd.DataFrame:
    """One row a site, one column a property, and what they sum up to."""
    table = added.table.reset_index()
    table.insert(0, "crystal", name)
    return table.assign(
        sum=added.by_site().to_numpy(),
        target=added.name,
        unit=added.unit,
        prediction=added.prediction,
        baseline=added.baseline,
    )
