"""CrysXPP learns from few labels: with and without pretraining, and beside controls.

Every run draws its training and test rows from its seed; the validation rows that choose the epoch
are taken from the training rows, and the test rows are read once, by the finished model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from crysxpp_mm.benchmarks.methods import (
    ELEMENT_NETWORKS,
    LONGER,
    LONGER_NETWORKS,
    LONGER_PROPERTIES,
    LONGER_SINGLE,
    LONGER_UNTRAINED,
    METHODS,
    MIXED,
    PRETRAINED,
    SINGLE,
    SINGLES,
    UNTRAINED,
    WHAT,
    WITH_ELEMENTS,
    WITHOUT_ELEMENTS,
    make_run,
)
from crysxpp_mm.benchmarks.pages import (
    bullets,
    markdown_table,
    one_column_each,
    page,
    plus_minus,
)
from crysxpp_mm.benchmarks.properties import (
    PROPERTIES,
    SETTINGS_CHOSEN,
    TEST_FRACTION,
    Property,
    find_property,
)
from crysxpp_mm.benchmarks.runner import HERE, Place, check_names
from crysxpp_mm.benchmarks.statistics import difference_by_seed, over_seeds
from crysxpp_mm.benchmarks.trials import RUNS, Trials
from crysxpp_mm.errors import SettingsError

FRACTION = 0.2
"""Share of the labels of the table, as in the paper."""
SEEDS = (0, 1, 2)
N_MEMBERS = 3
"""Networks of an ensemble."""
DIFFERENCES = (
    "{difference}, seed by seed; a verdict where the mean difference exceeds "
    "its standard deviation over the seeds:"
)
COMMAND = "crysxpp benchmark small-data"


def run_small_data(
    place: Place = HERE,
    *,
    properties: Sequence[str] | None = None,
    seeds: Sequence[int] = SEEDS,
    n_members: int = N_MEMBERS,
    methods: Sequence[str] = METHODS,
    longer: Sequence[str] = LONGER_PROPERTIES,
    element_control: bool = True,
) -> pd.DataFrame:
    """Learn every property from 20 % of the labels, and write the table; hours on one core.

    Writes ``small_data.csv``, ``small_data.md`` and ``small_data_runs.csv``. A run that was
    stopped goes on: what ``small_data_runs.csv`` has is not computed again.

    Args:
        place: Where data are and results go.
        properties: Names of the properties; all seven without it.
        seeds: Seeds of the splits.
        n_members: Networks of an ensemble.
        methods: Names of what is compared.
        longer: Names of properties that networks are trained longer on as well.
        element_control: Whether CrysXPP, if it is among the methods, learns every property with
            the other choice of ``element_channel`` as well.

    Returns:
        One row per property and method, as in ``small_data.csv``.

    Raises:
        DataError: the data are missing, or there is no property of a name.
        SettingsError: there is no method of a name, no seed, or no network.
    """
    chosen = [find_property(name) for name in properties or [item.name for item in PROPERTIES]]
    check_settings(seeds, n_members, methods)
    trained_longer = {find_property(name) for name in longer}
    others = element_control and PRETRAINED in methods
    trials = Trials(place)
    runs = [
        make_run(item.name, FRACTION, seed, method, n_members)
        for item in chosen
        for seed in seeds
        for method in (*methods, *_controls(item, item in trained_longer, others))
    ]
    summary, text = tabulate(trials.results(runs), seeds)
    place.write("small_data", text, small_data=summary)
    return summary


def _controls(item: Property, longer: bool, elements: bool) -> Iterator[str]:
    """Networks that are trained on a property beside the methods."""
    if longer:
        yield from LONGER_NETWORKS
    if elements:
        yield WITHOUT_ELEMENTS if item.element_channel else WITH_ELEMENTS


def check_settings(seeds: Sequence[int], n_members: int, methods: Sequence[str]) -> None:
    """Raise if there is nothing to run.

    Raises:
        SettingsError: there is no method of a name, no seed, or no network.
    """
    check_names("seeds", seeds)
    check_names("methods", methods, METHODS)
    if n_members < 1:
        raise SettingsError(f"n_members must be at least 1, got {n_members}.")


def tabulate(results: pd.DataFrame, seeds: Sequence[int]) -> tuple[pd.DataFrame, str]:
    """Make the table and the page of finished runs.

    Args:
        results: One row a run.
        seeds: Seeds of the splits.
    """
    results = with_derived(results)
    summary = summarize(results)
    return summary, _page(summary, compare(results), seeds)


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of the errors over the seeds.

    Args:
        results: One row a run.

    Returns:
        One row per property, fraction and method: ``mae``, its standard deviation ``std`` over the
        seeds, ``mae_one_network``, ``mae_per_cell``, ``n_train``, ``n_test``, ``n_seeds``.
    """
    summary = over_seeds(
        results,
        ("property", "fraction", "method"),
        first=("n_members", "n_train", "n_test"),
        means=("mae_one_network", "mae_per_cell"),
    )
    units = [find_property(name).error_unit for name in summary["property"]]
    summary.insert(1, "unit", units)
    return summary


def with_derived(results: pd.DataFrame) -> pd.DataFrame:
    """The results, and behind those of an ensemble what was derived from its predictions.

    These are the mean error of one of its networks, and the error of the mean of its prediction
    and of that of a model on columns, where it was computed.
    """
    ensembles = results[results["n_members"] > 1].assign(mae_per_cell=np.nan)
    alone = ensembles.assign(
        method=ensembles["method"].map(SINGLES), n_members=1, mae=ensembles["mae_one_network"]
    )
    mixed = ensembles.assign(method=MIXED, mae=ensembles["mae_with_columns"])
    return pd.concat([results, alone, mixed.dropna(subset=["mae"])]).sort_index(
        kind="stable", ignore_index=True
    )


def compare(results: pd.DataFrame) -> pd.DataFrame:
    """Errors with pretraining minus those of the other methods, seed by seed.

    The controls without pretraining and those of the element channel are single networks, and are
    compared with such; an ensemble that was trained longer is compared with one that was not.

    Returns:
        One row per property and other method, as ``difference_by_seed`` gives it.
    """
    rows = []
    for name in results["property"].unique():
        wide = results[results["property"] == name].pivot(
            index="seed", columns="method", values="mae"
        )
        for method in wide.columns.drop([LONGER, *SINGLES.values()], errors="ignore"):
            if ours := _compared_with(method, wide.columns):
                names = {"property": name, "method": ours, "compared with": method}
                rows.append({**names, **difference_by_seed(wide, ours, method)})
    return pd.DataFrame(rows)


def _compared_with(method: str, present: pd.Index) -> str | None:
    """Pick the method that another is compared with, of those that are ``present``."""
    ours = {PRETRAINED: LONGER, LONGER_UNTRAINED: LONGER}.get(method, PRETRAINED)
    if ours not in present:
        return None
    if method in (UNTRAINED, LONGER_UNTRAINED, *ELEMENT_NETWORKS) and SINGLES[ours] in present:
        return SINGLES[ours]
    return ours


# Parts of the pages.


def errors_by_method(summary: pd.DataFrame, index: Sequence[str]) -> pd.DataFrame:
    """Errors as text, one column per method; the least in bold."""
    return one_column_each(
        summary,
        "method",
        lambda group: {
            **{name: group[name].iloc[0] for name in index},
            "labels": f"{group['n_train'].iloc[0]:,}",
        },
        index=index,
    )


def methods_in_words(summary: pd.DataFrame) -> str:
    """A list of the methods with a line on each."""
    n_members = summary.loc[summary["method"].isin(SINGLES), "n_members"].max()
    networks = "1 network" if n_members == 1 else f"{n_members} networks"
    return bullets(
        f"{method}: {WHAT[method].format(n_members=networks)}."
        for method in summary["method"].unique()
    )


def split_in_words(seeds: str) -> str:
    """A paragraph on the errors and the splits."""
    return (
        f"Test errors, mean ± standard deviation over {seeds}, each with a split of its own: "
        f"{TEST_FRACTION:.0%} of the labelled crystals are the test set, which every finished "
        "model reads once; validation crystals are taken from those learned from. "
        f"{SETTINGS_CHOSEN} The weights of CrysAE saw the structures of all crystals, and no label."
    )


def differences_table(differences: pd.DataFrame) -> str:
    """Differences and verdicts in Markdown."""
    shown = differences.assign(
        difference=plus_minus(differences["difference"], differences["std"], "+.3g ± .1g"),
        relative=[f"{value:+.1%}" for value in differences["relative"]],
    )
    return markdown_table(shown.drop(columns="std"))


def _page(summary: pd.DataFrame, differences: pd.DataFrame, seeds: Sequence[int]) -> str:
    trained_longer = summary["method"].isin([LONGER, LONGER_SINGLE, LONGER_UNTRAINED])
    of_elements = summary["method"].isin(ELEMENT_NETWORKS)
    blocks = [split_in_words(f"{len(seeds)} seeds ({', '.join(map(str, seeds))})")]
    for part in (summary[~trained_longer & ~of_elements], summary[trained_longer]):
        if len(part):
            blocks += [_table_with_aims(part), methods_in_words(part)]
    if of_elements.any():
        blocks += [_table_of_elements(summary), methods_in_words(summary[of_elements])]
    if len(differences):
        first = DIFFERENCES.format(difference="A method minus what it is compared with")
        blocks += [first, differences_table(differences)]
    blocks += _notes([find_property(name) for name in summary["property"].unique()])
    cells = summary.dropna(subset=["mae_per_cell"])
    if len(cells):
        blocks.append("The magnetic moment is learned per site; errors per cell, Bohr magneton:")
        blocks.append(markdown_table(_pivot(cells, "mae_per_cell")))
    return page(
        "Properties from a fifth of the labels",
        *blocks,
        command=COMMAND,
        where=f"; every run is in `{RUNS}`",
    )


def _notes(shown: Sequence[Property]) -> Iterator[str]:
    """Sentences on how some of the properties are learned."""
    if named := [f"{item.name} `{item.transform}`" for item in shown if item.transform]:
        yield f"Learned by a transform: {', '.join(named)}."
    if named := [item.name for item in shown if item.element_channel]:
        yield f"With `element_channel=True` in all networks: {', '.join(named)}."


def _table_with_aims(summary: pd.DataFrame) -> str:
    """Errors by method beside the aims, in Markdown."""
    table = errors_by_method(summary, ["property", "unit"])
    aims = {item.name: "" if item.aim is None else item.aim for item in PROPERTIES}
    return markdown_table(table.assign(aim=table["property"].map(aims).astype(object)))


def _table_of_elements(summary: pd.DataFrame) -> str:
    """Errors of single networks with and without the element channel, in Markdown."""
    chosen = {
        item.name: WITH_ELEMENTS if item.element_channel else WITHOUT_ELEMENTS
        for item in PROPERTIES
    }
    alone = SINGLE if (summary["method"] == SINGLE).any() else PRETRAINED
    ours = summary[summary["method"] == alone]
    controls = summary[summary["method"].isin(ELEMENT_NETWORKS)]
    rows = pd.concat([ours.assign(method=ours["property"].map(chosen)), controls])
    table = errors_by_method(rows, ["property", "unit"])
    return markdown_table(table[["property", "unit", "labels", WITHOUT_ELEMENTS, WITH_ELEMENTS]])


def _pivot(summary: pd.DataFrame, value: str) -> pd.DataFrame:
    wide = summary.pivot(index="property", columns="method", values=value)
    ordered = wide.loc[summary["property"].unique(), summary["method"].unique()]
    return ordered.reset_index().rename_axis(None, axis=1)
