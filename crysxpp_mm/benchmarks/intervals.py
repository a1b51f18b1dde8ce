"""Whether intervals hold the truth as often as they say, and whether errors grow with distance.

Twenty random splits of three tables: a fifth of the crystals is predicted, of the others a tenth
calibrates. The share of one small test set cannot show a coverage within two points; the mean over
the splits can.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import clone

from crysxpp_mm.benchmarks.data import TARGETS, load_tables
from crysxpp_mm.benchmarks.report import RESULTS, markdown_table, versions, write_report
from crysxpp_mm.benchmarks.runs import RunTable, settings_of
from crysxpp_mm.benchmarks.simple_models import one_blas_thread
from crysxpp_mm.compute import one_torch_thread
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.estimators import CrysXPPRegressor
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter

TARGET_NAMES = ("log10 K_VRH", "log10 eps_electronic", "formation energy")
"""Targets of ``crysxpp_mm.benchmarks.data``, one a table."""
N_SPLITS = 20
TEST_FRACTION = 0.2
CONFIDENCES = (0.5, 0.8, 0.9, 0.95)
NEAR, FAR = 0.5, 1.0
"""Relative distances between which crystals are neither near nor far."""
COMMAND = "crysxpp benchmark intervals"
RUNS = "intervals_splits.csv"
BY_DISTANCE = {
    "near": f"relative distance at most {NEAR:g}",
    "between": f"{NEAR:g} to {FAR:g}",
    "far": f"above {FAR:g}",
    "outside": "`in_domain` is False",
}


def run_intervals(
    root: str | Path | None = None,
    *,
    out: str | Path = RESULTS,
    targets: Sequence[str] = TARGET_NAMES,
    n_splits: int = N_SPLITS,
    estimator: CrysXPPRegressor | None = None,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Measure coverage and the use of the domain; about an hour on one core.

    Writes ``intervals.csv``, ``intervals.md`` and ``intervals_splits.csv``. A run that was stopped
    goes on: what the last of these has is not computed again.

    Args:
        root: The data root, as for ``crysxpp_mm.benchmarks.data.data_root``.
        out: The folder of the results.
        targets: Names of targets of ``crysxpp_mm.benchmarks.data``.
        n_splits: Random splits of each table.
        estimator: Its settings; the defaults if None.
        say: Where the lines of text go.

    Returns:
        One row a target, as in ``intervals.csv``.

    Raises:
        DataError: the data are missing.
        SettingsError: there is no target of a name, or no split.
    """
    known = {target.name: target for target in TARGETS}
    if not targets or (unknown := [name for name in targets if name not in known]):
        raise SettingsError(
            f"targets must be some of {', '.join(map(repr, known))}, got "
            f"{', '.join(map(repr, unknown)) if targets else 'none'}."
        )
    if n_splits < 1:
        raise SettingsError(f"n_splits must be at least 1, got {n_splits}.")
    chosen = [known[name] for name in targets]
    tables = load_tables(root, names=list(dict.fromkeys(target.table for target in chosen)))
    settings = clone(estimator or CrysXPPRegressor()).set_params(accelerator="cpu", pbar=False)
    done = RunTable(Path(out) / RUNS)
    rows: list[dict[str, Any]] = []
    with one_blas_thread(), one_torch_thread():
        for target in chosen:
            table = tables[target.table]
            labels = table.targets[target.name].to_numpy(dtype=np.float64)
            usable = np.flatnonzero(~np.isnan(labels))
            graphs = CrystalGraphConverter().convert_many([table.structures[row] for row in usable])
            for seed in range(n_splits):
                key = _key(settings, graphs, labels[usable], seed)
                found = done.find(key)
                if not found:
                    started = time.monotonic()
                    row = {
                        "target": target.name,
                        "unit": target.unit,
                        "seed": seed,
                        **measure_split(settings, graphs, labels[usable], seed=seed),
                    }
                    say(
                        f"{target.name}, split {seed}: 90 % intervals hold "
                        f"{row['coverage_0.9']:.1%}   ({time.monotonic() - started:.0f} s)"
                    )
                    found = done.add(key, [row])
                rows += found
    splits = pd.DataFrame(rows)
    summary = summarize(splits)
    write_report(
        out,
        "intervals",
        tables={"intervals": summary},
        text=_page(summary, splits, n_splits, settings.n_members),
    )
    say(f"intervals: written to {out}")
    return summary


def measure_split(
    estimator: CrysXPPRegressor,
    graphs: CrystalGraphs,
    labels: NDArray[np.float64],
    *,
    seed: int,
) -> dict[str, Any]:
    """Fit on four fifths of the crystals, and look at intervals and domain of the others.

    Args:
        estimator: Its settings; it is left as it was.
        graphs: All crystals of a table.
        labels: Their labels, shape ``(n,)``.
        seed: Of the split, the weights and the order.

    Returns:
        Coverage and mean width at each of ``CONFIDENCES``, mean absolute errors of all test
        crystals and by distance with their numbers, and the rank correlation of error and
        relative distance.
    """
    order = np.random.default_rng([seed, 13]).permutation(len(labels))
    n_test = round(TEST_FRACTION * len(labels))
    test, train = order[:n_test], order[n_test:]
    model = clone(estimator).set_params(seed=seed)
    model.fit(graphs.select(train), labels[train])
    unseen, truth = graphs.select(test), labels[test]
    row: dict[str, Any] = {"n_train": len(train), "n_test": n_test}
    for confidence in CONFIDENCES:
        interval = model.predict_interval(unseen, confidence=confidence)
        lower, upper = interval["lower"].to_numpy(), interval["upper"].to_numpy()
        row[f"coverage_{confidence:g}"] = float(((lower <= truth) & (truth <= upper)).mean())
        row[f"width_{confidence:g}"] = float((upper - lower).mean())
    error = np.abs(model.predict(unseen) - truth)
    domain = model.domain(unseen)
    distance = domain["relative_distance"].to_numpy(dtype=np.float64)
    groups = {
        "near": distance <= NEAR,
        "between": (distance > NEAR) & (distance <= FAR),
        "far": distance > FAR,
        "outside": ~domain["in_domain"].to_numpy(dtype=bool),
    }
    row["mae"] = float(error.mean())
    for name, members in groups.items():
        row[f"n_{name}"] = int(members.sum())
        row[f"mae_{name}"] = float(error[members].mean()) if members.any() else np.nan
    row["rank_correlation"] = float(pd.Series(distance).rank().corr(pd.Series(error).rank()))
    return row


def summarize(splits: pd.DataFrame) -> pd.DataFrame:
    """Means over the splits.

    Args:
        splits: One row a target and split.

    Returns:
        One row a target: the mean of every column, ``std_coverage_...`` over the splits, and the
        errors by distance as means over all crystals of all splits.
    """
    rows = []
    for target, group in splits.groupby("target", sort=False):
        row: dict[str, Any] = {
            "target": target,
            "unit": group["unit"].iloc[0],
            "n_splits": len(group),
            "n_test": int(group["n_test"].iloc[0]),
            "mae": group["mae"].mean(),
            "rank_correlation": group["rank_correlation"].mean(),
        }
        for confidence in CONFIDENCES:
            row[f"coverage_{confidence:g}"] = group[f"coverage_{confidence:g}"].mean()
            row[f"std_coverage_{confidence:g}"] = group[f"coverage_{confidence:g}"].std(ddof=1)
            row[f"width_{confidence:g}"] = group[f"width_{confidence:g}"].mean()
        for name in BY_DISTANCE:
            counts, errors = group[f"n_{name}"], group[f"mae_{name}"].fillna(0.0)
            row[f"share_{name}"] = counts.sum() / group["n_test"].sum()
            row[f"mae_{name}"] = (counts * errors).sum() / counts.sum() if counts.sum() else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _key(
    estimator: CrysXPPRegressor, graphs: CrystalGraphs, labels: NDArray[np.float64], seed: int
) -> str:
    """A hash of all that the numbers of a split depend on, but for roundings of a processor."""
    settings = (settings_of(estimator), seed, TEST_FRACTION, CONFIDENCES, NEAR, FAR)
    total = sha256(repr((settings, versions())).encode())
    for array in (graphs.n_atoms, graphs.species_numbers, labels):
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


def _page(summary: pd.DataFrame, splits: pd.DataFrame, n_splits: int, n_members: int) -> str:
    coverage = [
        {
            "target": row["target"],
            "unit": row["unit"],
            "test crystals": f"{n_splits} x {row['n_test']}",
            **{
                f"{confidence:.0%}": (
                    f"{row[f'coverage_{confidence:g}']:.1%} "
                    f"± {row[f'std_coverage_{confidence:g}']:.1%}"
                )
                for confidence in CONFIDENCES
            },
            "width of 90 %": row["width_0.9"],
            "mean absolute error": row["mae"],
        }
        for _, row in summary.iterrows()
    ]
    distance = [
        {
            "target": row["target"],
            **{
                name: f"{row[f'mae_{name}']:.3g} ({row[f'share_{name}']:.0%})"
                for name in BY_DISTANCE
            },
            "rank correlation": row["rank_correlation"],
        }
        for _, row in summary.iterrows()
    ]
    return "\n".join(
        [
            "# Intervals and domain",
            "",
            (
                f"{n_splits} random splits of each table: {1 - TEST_FRACTION:.0%} of the crystals "
                "are fitted (a tenth of them chooses the epoch and calibrates), the others are "
                f"predicted. `CrysXPPRegressor` with {n_members} network"
                f"{'s' if n_members > 1 else ''} and its default settings."
            ),
            "",
            "## How often `predict_interval` holds the truth",
            "",
            (
                "Mean ± standard deviation over the splits, below the confidence that was asked "
                "for; the mean width of the intervals of 90 %."
            ),
            "",
            markdown_table(pd.DataFrame(coverage)),
            "",
            "## Whether errors grow with the distance that `domain` gives",
            "",
            "Mean absolute error (and share) of the test crystals of all splits:",
            "",
            markdown_table(pd.DataFrame(distance)),
            "",
            *(f"- {name}: {what}." for name, what in BY_DISTANCE.items()),
            "- rank correlation: Spearman's, of error and relative distance, mean of the splits.",
            "",
            f"Made by `{COMMAND}`; every split is in `{RUNS}` ({len(splits)} rows).",
            "",
            f"Versions: {versions()}.",
            "",
        ]
    )
