"""Error against the number of labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pandas as pd

from crysxpp_mm.benchmarks.methods import METHODS, UNTRAINED, Run, make_run
from crysxpp_mm.benchmarks.pages import markdown_table, page
from crysxpp_mm.benchmarks.properties import find_property
from crysxpp_mm.benchmarks.runner import HERE, Place
from crysxpp_mm.benchmarks.small_data import (
    DIFFERENCES,
    SEEDS,
    check_settings,
    compare,
    differences_table,
    errors_by_method,
    methods_in_words,
    split_in_words,
    summarize,
)
from crysxpp_mm.benchmarks.trials import RUNS, Trials
from crysxpp_mm.plots import draw_label_curves

FRACTIONS = (0.01, 0.05, 0.2, 0.4, 0.6, 0.8)
PROPERTY_NAMES = ("formation energy", "bulk modulus")
COMMAND = "crysxpp benchmark small-data --curves"


def run_label_curves(
    place: Place = HERE,
    *,
    properties: Sequence[str] = PROPERTY_NAMES,
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = SEEDS,
    n_members: int = 1,
    methods: Sequence[str] = METHODS,
) -> pd.DataFrame:
    """Learn from more and more labels; as a table and a figure.

    Writes ``label_curves.csv``, ``label_curves.md`` and ``label_curves.png``. The runs are kept
    in ``small_data_runs.csv``, and what that has of other seeds, fractions and properties of the
    curves, of all methods, stands on the page as well: a run of hours can be made in parts.

    Args:
        place: Where data are and results go.
        properties: Names of the properties.
        fractions: Shares of the labelled crystals that are learned from.
        seeds: Seeds of the splits.
        n_members: Networks of an ensemble.
        methods: Names of what is compared.

    Returns:
        One row per property, fraction and method, as in ``label_curves.csv``.

    Raises:
        DataError: the data are missing, or there is no property of a name.
        SettingsError: there is no method of a name, no seed, or no network.
    """
    chosen = [find_property(name).name for name in properties]
    check_settings(seeds, n_members, methods)
    trials = Trials(place)

    def runs(name: str, fraction: float, seed: int) -> list[Run]:
        return [make_run(name, fraction, seed, method, n_members) for method in methods]

    for point in product(chosen, fractions, seeds):
        trials.results(runs(*point))
    points = product(
        dict.fromkeys([*PROPERTY_NAMES, *chosen]),
        sorted({*FRACTIONS, *fractions}),
        sorted({*SEEDS, *seeds}),
    )
    found = [[trials.found(run) for run in runs(*point)] for point in points]
    summary, text = tabulate(pd.DataFrame([row for rows in found if all(rows) for row in rows]))
    place.write("label_curves", text, label_curves=summary)
    draw_label_curves(summary).savefig(place.file("label_curves.png"))
    return summary


def tabulate(results: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Make the table and the page of finished runs, all methods on each split."""
    summary = summarize(results)
    seeds = results.groupby(["property", "fraction"])["seed"].unique()
    shown = summary.assign(
        share=[f"{fraction:.0%}" for fraction in summary["fraction"]],
        seeds=[
            ", ".join(map(str, seeds[key]))
            for key in zip(summary["property"], summary["fraction"], strict=True)
        ],
    )
    text = page(
        "Error against the number of labels",
        split_in_words("the seeds of a row"),
        markdown_table(errors_by_method(shown, ["property", "unit", "share", "seeds"])),
        "![error against labels](label_curves.png)",
        *_differences(results),
        methods_in_words(summary),
        command=COMMAND,
        where=f"; every run is in `{RUNS}`",
    )
    return summary, text


def _differences(results: pd.DataFrame) -> list[str]:
    """Differences that pretraining makes, at every share of the labels."""
    differences = pd.concat(
        compare(part).assign(share=f"{fraction:.0%}")
        for (_, fraction), part in results.groupby(["property", "fraction"], sort=False)
    )
    if not len(differences):
        return []
    of_pretraining = differences[differences["compared with"] == UNTRAINED]
    shown = of_pretraining[["property", "share", "difference", "std", "relative", "verdict"]]
    first = DIFFERENCES.format(difference="With pretraining minus without")
    return [first, differences_table(shown)]
