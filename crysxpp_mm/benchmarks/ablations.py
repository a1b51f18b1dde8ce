"""What each part of CrysXPP is worth: the selector (Table 6), the encoder (Table 7), the read-out.

The models and splits are those of ``small_data``, with one setting changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from crysxpp_mm.benchmarks.properties import LabelledCrystals, find_property, load_properties
from crysxpp_mm.benchmarks.report import RESULTS, markdown_table, versions, write_report
from crysxpp_mm.benchmarks.small_data import (
    FRACTION,
    NETWORKS,
    PRETRAINED,
    RUNS,
    SEEDS,
    Benchmark,
    make_run,
    summarize,
)
from crysxpp_mm.errors import SettingsError

PROPERTY_NAMES = ("bulk modulus", "Poisson ratio")
COMMAND = "crysxpp benchmark ablations"


def run_ablations(
    root: str | Path | None = None,
    *,
    graphs: str | Path | None = None,
    out: str | Path = RESULTS,
    properties: Sequence[str] = PROPERTY_NAMES,
    variants: Sequence[str] | None = None,
    seeds: Sequence[int] = SEEDS,
    say: Callable[[str], None] = print,
    crystals: LabelledCrystals | None = None,
) -> pd.DataFrame:
    """Train every variant on a fifth of the labels, and write the table; an hour on one core.

    Writes ``ablations.csv`` and ``ablations.md``; the runs are kept in ``small_data_runs.csv``,
    and what that has is not computed again.

    Args:
        root: The data root, as for ``crysxpp_mm.benchmarks.data.data_root``.
        graphs: File of the graphs, as for ``load_graphs``.
        out: The folder of the results.
        properties: Names of the properties.
        variants: Which of ``crysxpp_mm.benchmarks.small_data.NETWORKS``, beside the defaults; all
            without it.
        seeds: Seeds of the splits.
        say: Where the lines of text go.
        crystals: The crystals, if they are in memory.

    Returns:
        One row a property and variant, as in ``ablations.csv``.

    Raises:
        DataError: the data are missing, or there is no property of a name.
        SettingsError: there is no variant of a name, or no seed.
    """
    chosen = [find_property(name) for name in properties]
    names = list(NETWORKS) if variants is None else [PRETRAINED, *variants]
    if unknown := [name for name in names if name not in NETWORKS]:
        raise SettingsError(
            f"there is no variant {unknown[0]!r}; there are {', '.join(map(repr, NETWORKS))}."
        )
    if not seeds:
        raise SettingsError("seeds must not be empty.")
    benchmark = Benchmark(crystals or load_properties(root, graphs=graphs), out=out, say=say)
    results = benchmark.results(
        [
            make_run(item.name, FRACTION, seed, name, n_members=1)
            for item in chosen
            for seed in seeds
            for name in dict.fromkeys(names)
        ]
    )
    summary = summarize(results).drop(columns=["mae_one_network", "mae_per_cell", "fraction"])
    off = results["settings"].str.extract(r"^([\d.]+) of")[0].astype(float)
    zeros = off.groupby([results["property"], results["method"]]).mean()
    summary["columns_off"] = [
        zeros[name, method]
        for name, method in zip(summary["property"], summary["method"], strict=True)
    ]
    summary["difference"], summary["std_difference"] = _differences(results, summary)
    write_report(out, "ablations", tables={"ablations": summary}, text=_page(summary, seeds))
    say(f"ablations: written to {out}")
    return summary


def _differences(results: pd.DataFrame, summary: pd.DataFrame) -> tuple[list[float], list[float]]:
    """Error minus that of the defaults, seed by seed: mean and standard deviation."""
    errors = results.set_index(["property", "method", "seed"])["mae"].sort_index()
    means, spreads = [], []
    for name, method in zip(summary["property"], summary["method"], strict=True):
        difference = errors[name, method] - errors[name, PRETRAINED]
        means.append(float(difference.mean()))
        spreads.append(float(difference.std(ddof=1)))
    return means, spreads


def _page(summary: pd.DataFrame, seeds: Sequence[int]) -> str:
    shown = pd.DataFrame(
        {
            "property": summary["property"],
            "variant": summary["method"],
            "MAE": [_text(mae, std) for mae, std in summary[["mae", "std"]].to_numpy()],
            "unit": summary["unit"],
            "minus the defaults": [
                "" if method == PRETRAINED else f"{mean:+.2g} ± {std:.1g}"
                for method, mean, std in zip(
                    summary["method"],
                    summary["difference"],
                    summary["std_difference"],
                    strict=True,
                )
            ],
            "columns off": summary["columns_off"],
        }
    )
    return "\n".join(
        [
            "# What each part of CrysXPP is worth",
            "",
            (
                f"`CrysXPPRegressor` with one setting changed, one network, {FRACTION:.0%} of the "
                f"labels, splits and test sets of `small_data.md`, seeds "
                f"{', '.join(map(str, seeds))}: mean ± standard deviation over the seeds. "
                f"{PRETRAINED!r} are the defaults (sparsity 0.001, all layers, the mean over the "
                "sites of a hidden layer, the encoder at the full rate)."
            ),
            "",
            markdown_table(shown),
            "",
            f"Made by `{COMMAND}`; every run is in `{RUNS}`.",
            "",
            f"Versions: {versions()}.",
            "",
        ]
    )


def _text(mae: float, std: float) -> str:
    return f"{mae:.3g}" + ("" if np.isnan(std) else f" ± {std:.1g}")
