"""Layers and moments that could be the default columns of ``CrysAEFeaturizer``, compared."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from crysxpp_mm.benchmarks.columns import COMMAND
from crysxpp_mm.benchmarks.data import BenchmarkTable, load_tables
from crysxpp_mm.benchmarks.folds import Folds, Kind, first_rows, summarize, table_with_ratios
from crysxpp_mm.benchmarks.pages import markdown_table, model_name, page
from crysxpp_mm.benchmarks.runner import HERE, Place
from crysxpp_mm.benchmarks.simple_models import (
    FOLDS,
    QUICK,
    candidates_in_words,
    one_blas_thread,
)

CHOICES: Mapping[str, tuple[bool, tuple[str, ...]]] = {
    f"{'all layers' if all_layers else 'last layer'}, {', '.join(moments)}": (all_layers, moments)
    for all_layers in (False, True)
    for moments in (("mean",), ("mean", "std"), ("mean", "std", "max"))
}
"""Layers (all, or the last) and moments that could be the default columns."""


def run_choice(
    place: Place = HERE,
    *,
    model: str | os.PathLike[str] | None = None,
    tables: Mapping[str, BenchmarkTable] | None = None,
    rows: int | None = None,
) -> pd.DataFrame:
    """Measure which layers and which moments make the best default columns.

    Ridge or SVR of a small grid, chosen on the training folds. Writes ``column_choice.csv`` and
    ``column_choice.md``, and the errors fold by fold, from which a stopped run goes on.

    Args:
        place: Where data are and results go.
        model: Name or path of the model; the default one without it.
        tables: Tables that are loaded already, in place of ``root``.
        rows: Only the first rows of every table, for a quick try.

    Returns:
        One row per target and choice, as in ``column_choice.csv``.

    Raises:
        DataError: The data are missing.
        UnknownModelError: There is no such model.
    """
    from crysxpp_mm.featurizers import CrysAEFeaturizer
    from crysxpp_mm.shipped import DEFAULT_MODEL

    name = DEFAULT_MODEL if model is None else model
    loaded = first_rows(load_tables(place.root) if tables is None else tables, rows)
    featurizer = CrysAEFeaturizer(model=name, device="cpu")
    labels = featurizer.feature_labels()
    embedded = {
        table.name: featurizer.structure_embeddings(table.structures) for table in loaded.values()
    }
    cache = Folds(place.file("column_choice_folds.csv"), QUICK, margin=np.inf)
    with one_blas_thread():
        for choice, (all_layers, moments) in CHOICES.items():
            wanted = _wanted(labels, all_layers, moments)
            blocks = iter([block[:, wanted] for block in embedded.values()])
            kind = Kind(name=choice, what="", embed=lambda _, blocks=blocks: next(blocks))  # type: ignore[misc]
            cache.score(kind, loaded, place.say)
    summary, text = tabulate(cache.finish(), model_name(name))
    place.write("column_choice", text, column_choice=summary)
    return summary


def _wanted(labels: Sequence[str], all_layers: bool, moments: Sequence[str]) -> list[bool]:
    """Mark the columns of some layers and moments by their labels, such as CrysAE L2 mean 17."""
    parts = [label.split() for label in labels]
    last = max(layer for _, layer, *_ in parts)
    return [(all_layers or layer == last) and moment in moments for _, layer, moment, _ in parts]


def tabulate(folds: pd.DataFrame, model: str) -> tuple[pd.DataFrame, str]:
    """Make the table and the page from finished folds.

    Args:
        folds: One row per target, choice and fold.
        model: Name of the model.
    """
    summary = summarize(folds).drop(columns=["std_seeds", "trees"])
    text = page(
        "Which layers and which moments become the default columns",
        f"Mean absolute error over {FOLDS} folds ± its standard deviation over the folds, model "
        f"{model}; the least in bold.",
        markdown_table(table_with_ratios(summary, summary["kind"].iloc[-1])),
        command=COMMAND,
        where=f": {candidates_in_words(QUICK)}, chosen on the training folds. Folds, seeds, tables "
        "and rows left out as in `columns.md`; the errors of every fold are in "
        "`column_choice_folds.csv`",
    )
    return summary, text
