"""Intervals, which should hold the truth as often as they say, and errors against distance.

Twenty random splits of three tables: a fifth of the crystals is predicted, of the others a tenth
calibrates. The share of one small test set cannot show a coverage within two points; the mean over
the splits can.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import clone

from crysxpp_mm.benchmarks.data import TARGETS, BenchmarkTable, Target, load_tables
from crysxpp_mm.benchmarks.pages import (
    bullets,
    markdown_table,
    page,
    versions,
)
from crysxpp_mm.benchmarks.runner import (
    HERE,
    Place,
    RunTable,
    check_names,
    key_of,
    one_thread,
    settings_of,
)
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
    place: Place = HERE,
    *,
    targets: Sequence[str] = TARGET_NAMES,
    n_splits: int = N_SPLITS,
    estimator: CrysXPPRegressor | None = None,
) -> pd.DataFrame:
    """Measure coverage and the use of the domain; about an hour on one core.

    Writes ``intervals.csv``, ``intervals.md`` and ``intervals_splits.csv``. A run that was stopped
    goes on: what the last of these has is not computed again.

    Args:
        place: Where data are and results go.
        targets: Names of targets of ``crysxpp_mm.benchmarks.data``.
        n_splits: Random splits of each table.
        estimator: Its settings; the defaults if None.

    Returns:
        One row a target, as in ``intervals.csv``.

    Raises:
        DataError: the data are missing.
        SettingsError: there is no target of a name, or no split.
    """
    known = {target.name: target for target in TARGETS}
    check_names("targets", targets, known)
    if n_splits < 1:
        raise SettingsError(f"n_splits must be at least 1, got {n_splits}.")
    chosen = [known[name] for name in targets]
    tables = load_tables(place.root, names=list(dict.fromkeys(target.table for target in chosen)))
    settings = clone(estimator or CrysXPPRegressor()).set_params(accelerator="cpu", pbar=False)
    done = RunTable(place.file(RUNS))
    rows: list[dict[str, Any]] = []
    with one_thread():
        for target in chosen:
            rows += _splits(
                target, tables[target.table], settings, range(n_splits), done, place.say
            )
    summary, text = tabulate(pd.DataFrame(rows), n_splits, settings.n_members)
    place.write("intervals", text, intervals=summary)
    return summary


def _splits(
    target: Target,
    table: BenchmarkTable,
    settings: CrysXPPRegressor,
    seeds: Iterable[int],
    done: RunTable,
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Measure every split of a target, or find it again."""
    known = table.targets[target.name].to_numpy(dtype=np.float64)
    usable = np.flatnonzero(~np.isnan(known))
    graphs = CrystalGraphConverter().convert_many([table.structures[row] for row in usable])
    labels = known[usable]

    def measured(seed: int) -> dict[str, Any]:
        started = time.monotonic()
        row = measure_split(settings, graphs, labels, seed=seed)
        say(
            f"{target.name}, split {seed}: 90 % intervals hold {row['coverage_0.9']:.1%}   "
            f"({time.monotonic() - started:.0f} s)"
        )
        return {"target": target.name, "unit": target.unit, "seed": seed, **row}

    for seed in seeds:
        facts = (settings_of(settings), seed, TEST_FRACTION, CONFIDENCES, NEAR, FAR)
        key = key_of(repr((facts, versions())), (graphs.n_atoms, graphs.species_numbers, labels))
        yield from done.rows_of(key, lambda seed=seed: [measured(seed)])  # type: ignore[misc]


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


def tabulate(splits: pd.DataFrame, n_splits: int, n_members: int) -> tuple[pd.DataFrame, str]:
    """Make the table and the page of finished splits.

    Args:
        splits: One row a target and split.
        n_splits: Splits of each target.
        n_members: Networks of an ensemble.
    """
    summary = summarize(splits)
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
    text = page(
        "Intervals and domain",
        f"{n_splits} random splits of each table: {1 - TEST_FRACTION:.0%} of the crystals are "
        "fitted (a tenth of them chooses the epoch and calibrates), the others are predicted. "
        f"`CrysXPPRegressor` with {n_members} network{'s' if n_members > 1 else ''} and its "
        "default settings.",
        "## How often `predict_interval` holds the truth",
        "Mean ± standard deviation over the splits, below the confidence that was asked for; the "
        "mean width of the intervals of 90 %.",
        markdown_table(pd.DataFrame(coverage)),
        "## Whether errors grow with the distance that `domain` gives",
        "Mean absolute error (and share) of the test crystals of all splits:",
        markdown_table(pd.DataFrame(distance)),
        bullets(
            (
                *(f"{name}: {what}." for name, what in BY_DISTANCE.items()),
                "rank correlation: Spearman's, of error and relative distance, mean of the splits.",
            )
        ),
        command=COMMAND,
        where=f"; every split is in `{RUNS}` ({len(splits)} rows)",
    )
    return summary, text
