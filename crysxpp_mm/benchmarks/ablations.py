"""Parts of CrysXPP, one changed at a time: selector (Table 6), encoder (Table 7), read-out.

The models and splits are those of ``small_data``, with one setting changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pandas as pd

from crysxpp_mm.benchmarks.methods import NETWORKS, PRETRAINED, make_run
from crysxpp_mm.benchmarks.pages import markdown_table, page, plus_minus
from crysxpp_mm.benchmarks.properties import find_property
from crysxpp_mm.benchmarks.runner import HERE, Place, check_names
from crysxpp_mm.benchmarks.small_data import FRACTION, SEEDS, summarize
from crysxpp_mm.benchmarks.statistics import difference_by_seed
from crysxpp_mm.benchmarks.trials import RUNS, Trials

PROPERTY_NAMES = ("bulk modulus", "Poisson ratio")
COMMAND = "crysxpp benchmark ablations"


def run_ablations(
    place: Place = HERE,
    *,
    properties: Sequence[str] = PROPERTY_NAMES,
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] = SEEDS,
) -> pd.DataFrame:
    """Train every variant on a fifth of the labels, and write the table; an hour on one core.

    Writes ``ablations.csv`` and ``ablations.md``; the runs are kept in ``small_data_runs.csv``,
    and what that has is not computed again.

    Args:
        place: Where data are and results go.
        properties: Names of the properties.
        variants: Which of ``crysxpp_mm.benchmarks.methods.NETWORKS``, beside the defaults; all
            without it.
        seeds: Seeds of the splits.

    Returns:
        One row per property and variant, as in ``ablations.csv``.

    Raises:
        DataError: the data are missing, or there is no property of a name.
        SettingsError: there is no variant of a name, or no seed.
    """
    chosen = [find_property(name) for name in properties]
    names = list(NETWORKS) if variants is None else [PRETRAINED, *variants]
    check_names("variants", names, NETWORKS)
    check_names("seeds", seeds)
    trials = Trials(place)
    results = trials.results(
        make_run(item.name, FRACTION, seed, name, n_members=1)
        for item, seed, name in product(chosen, seeds, dict.fromkeys(names))
    )
    summary, text = tabulate(results, seeds)
    place.write("ablations", text, ablations=summary)
    return summary


def tabulate(results: pd.DataFrame, seeds: Sequence[int]) -> tuple[pd.DataFrame, str]:
    """Make the table and the page of finished runs.

    Args:
        results: One row a run.
        seeds: Seeds of the splits.
    """
    off = results["settings"].str.extract(r"^([\d.]+) of")[0].astype(float)
    summary = summarize(results)
    zeros = off.groupby([results["property"], results["method"]]).mean()
    errors = results.pivot(index=["property", "seed"], columns="method", values="mae")
    rows = list(zip(summary["property"], summary["method"], strict=True))
    found = [difference_by_seed(errors.loc[name], method, PRETRAINED) for name, method in rows]
    summary = summary.drop(columns=["mae_one_network", "mae_per_cell", "fraction"]).assign(
        columns_off=[zeros[row] for row in rows],
        difference=[row["difference"] for row in found],
        std_difference=[row["std"] for row in found],
    )
    return summary, _page(summary, seeds)


def _page(summary: pd.DataFrame, seeds: Sequence[int]) -> str:
    differences = plus_minus(summary["difference"], summary["std_difference"], "+.2g ± .1g")
    shown = pd.DataFrame(
        {
            "property": summary["property"],
            "variant": summary["method"],
            "MAE": plus_minus(summary["mae"], summary["std"]),
            "unit": summary["unit"],
            "minus the defaults": differences,
            "columns off": summary["columns_off"],
        }
    )
    shown.loc[shown["variant"] == PRETRAINED, "minus the defaults"] = ""
    return page(
        "What each part of CrysXPP is worth",
        f"`CrysXPPRegressor` with one setting changed, one network, {FRACTION:.0%} of the labels, "
        f"splits and test sets of `small_data.md`, seeds {', '.join(map(str, seeds))}: mean ± "
        f"standard deviation over the seeds. {PRETRAINED!r} are the defaults (sparsity 0.001, all "
        "layers, the mean over the sites of a hidden layer, the encoder at the full rate).",
        markdown_table(shown),
        command=COMMAND,
        where=f"; every run is in `{RUNS}`",
    )
