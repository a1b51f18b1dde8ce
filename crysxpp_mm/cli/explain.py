"""``crysxpp explain``: why a model predicts what it predicts."""

# ruff: noqa: D301 - a backspace, not its escape, keeps the lines of an example apart in the help

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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

    from crysxpp_mm.data.sources import StructureSource
    from crysxpp_mm.explain import Contributions

    Explanation = tuple[pd.DataFrame, Contributions | None]
    Explained = tuple[str, pd.DataFrame, Contributions | None]

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
    _check_folder(out)
    if target is not None and not contributions:
        raise SettingsError("--target goes with --contributions; the weights are of all targets.")
    from crysxpp_mm.data.sources import open_structures

    estimator = load_predictor(model, can="explain")
    _ = estimator.feature_weights_  # an error at once where there is no selector
    found, column = find_source(source, column, data_home)
    entries = open_structures(found, column=column)
    explained, errors = [], {}
    for name, parts, error in _explain_each(entries, estimator, target, contributions):
        if parts is not None:
            explained.append((name, *parts))
            continue
        errors[name] = error
        if not ignore_errors:
            raise DataError(f"{name}: {error} (--ignore-errors leaves such crystals out.)")
    if not explained:
        name, error = next(iter(errors.items()))
        raise DataError(f"{entries.label}: nothing could be explained; {name}: {error}")
    _remove_earlier(out)
    files = _write_tables(out, explained, errors)
    told = "1 crystal explained" if len(explained) == 1 else f"{len(explained)} crystals explained"
    typer.echo(f"{told}, {len(errors)} left out." if errors else f"{told}.")
    print_errors(errors, LEFT_OUT)
    n_pictures = _draw(out, explained[:plots])
    typer.echo(f"Wrote to {out}: {', '.join(files)}, {n_pictures} pictures.")


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise SettingsError(f"--out {out} is a file; give a folder to write into.")
    check_writable(out / LEFT_OUT)


def _explain_each(
    entries: StructureSource, estimator: Any, target: str | None, contributions: bool
) -> Iterator[tuple[str, Explanation | None, str]]:
    """Each crystal by its name: its explanation, or None and the reason."""
    from tqdm.auto import tqdm

    from crysxpp_mm.data.sources import parse

    for payload in tqdm(entries, total=len(entries), desc="crystals"):
        try:
            structure = parse(payload)
            weights = estimator.explain(structure)
        except (DataError, StructureError, StructureTypeError) as error:
            yield payload.name, None, one_line(str(error).removeprefix(f"{payload.name}: "))
            continue
        added = estimator.contributions(structure, target=target) if contributions else None
        yield payload.name, (weights, added), ""


def _write_tables(
    out: Path, explained: Sequence[Explained], errors: Mapping[str, str]
) -> list[str]:
    """Write the tables, and name them."""
    import pandas as pd

    weights = [_weights_table(name, table) for name, table, _ in explained]
    parts = [_contributions_table(name, added) for name, _, added in explained if added is not None]
    tables = {f"{WEIGHTS}.csv": weights, f"{CONTRIBUTIONS}.csv": parts}
    if errors:
        left_out = {"crystal": list(errors), "reason": list(errors.values())}
        tables[LEFT_OUT] = [pd.DataFrame(left_out)]
    written = [name for name, rows in tables.items() if rows]
    for name in written:
        write_table(pd.concat(tables[name], ignore_index=True), out / name)
    return written


def _draw(out: Path, shown: Sequence[Explained]) -> int:
    """Draw a picture of the weights of each crystal, and of its contributions; count them."""
    from crysxpp_mm.plots import plot_contributions, plot_explanation

    pictures = _picture_names([name for name, _, _ in shown])
    for picture, (_, weights, added) in zip(pictures, shown, strict=True):
        _save(plot_explanation(weights), out / f"{picture}.{WEIGHTS}.png")
        if added is not None:
            _save(plot_contributions(added), out / f"{picture}.{CONTRIBUTIONS}.png")
    return sum(1 if added is None else 2 for _, _, added in shown)


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
    """One row per element and property."""
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
    """One row per site, one column per property, and what they sum up to."""
    table = added.table.reset_index()
    table.insert(0, "crystal", name)
    return table.assign(
        sum=added.by_site().to_numpy(),
        target=added.name,
        unit=added.unit,
        prediction=added.prediction,
        baseline=added.baseline,
    )
