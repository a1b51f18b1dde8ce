"""Reliability of intervals and domain, crystal by crystal, over random splits of five tables.

A fifth of the crystals is predicted, of the others a tenth calibrates. Beside the intervals stand
two controls: one width for all, and widths by the spread of an ensemble.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import clone

from crysxpp_mm.benchmarks.data import TARGETS, BenchmarkTable, Target, load_tables
from crysxpp_mm.benchmarks.pages import bullets, markdown_table, page, versions, write_report
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
from crysxpp_mm.estimators.intervals import FLOOR, quantile_rank
from crysxpp_mm.estimators.networks import outputs_of
from crysxpp_mm.estimators.splits import split_rows
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.plots.reliability import plot_error_by_width, plot_reliability

TARGET_NAMES = (
    "log10 K_VRH",
    "log10 G_VRH",
    "log10 eps_electronic",
    "exfoliation energy",
    "band gap",
)
N_SPLITS = 20
TEST_FRACTION = 0.2
CONFIDENCE = 0.9
COMMAND = "crysxpp benchmark reliability"
RUNS = "reliability_crystals.csv"
SHIPPED = "calibrated.csv"
KINDS = ("elements", "binaries", "more elements")
_SPLITS = (
    "A fifth of the crystals of a table is predicted; of the others a tenth chooses the epoch and "
    "calibrates. `CrysXPPRegressor` with its default settings, one network (band gap: "
    f"`transform='nonnegative'`). {N_SPLITS} random splits of each are the aim; `splits` says how "
    "many are finished, all of them pooled."
)
_COLUMNS = {
    "thirds": "coverage among the test crystals of each split with the narrowest, the middle and "
    "the widest intervals",
    "outside": "coverage outside the domain",
    "width": "mean width over that of intervals of one width for all; below 1 is better",
    "rank correlation": "Spearman's, of width and error, mean over the splits; one width has none",
    "one width": "coverage of intervals of one width: of all crystals, of those outside the "
    "domain, and of the third that the difficulty calls hardest",
}
_DOMAIN = (
    "Mean absolute error of the test crystals, share of them outside the domain and their error; "
    "then share outside, error and number by number of elements."
)
_SHIPPED = (
    "One split each, on the test crystals that the predictors never saw. The power of the "
    "difficulty was lowered after a first look at these results, so they are not quite untouched. "
    "`spread`: widths by the spread of the networks alone, much as earlier versions had them."
)
_SETS = (
    "`{predictor}`: sets of 90 % hold the class of {coverage:.1%} of {n_test:.0f} crystals "
    "({coverage_outside:.1%} of those outside the domain, which are {outside:.1%}); "
    "{two_classes:.1%} have both classes."
)
Numbers = NDArray[np.float64]


def run_reliability(
    place: Place = HERE,
    *,
    targets: Sequence[str] = TARGET_NAMES,
    n_splits: int = N_SPLITS,
    estimator: CrysXPPRegressor | None = None,
    models: str | Path = "reliability-models",
    docs: str | Path = "docs",
) -> pd.DataFrame:
    """Measure coverage, widths and domain; a minute a split on one core.

    Writes ``reliability_crystals.csv`` and ``reliability.csv`` beside other results, and
    ``reliability.md`` with its pictures into ``docs``. A run that was stopped goes on: splits that
    are in the first of these are not computed again, and fitted models are kept.

    Args:
        place: Where data are and results go.
        targets: Names of targets of ``crysxpp_mm.benchmarks.data``.
        n_splits: Random splits of each table.
        estimator: Its settings; the defaults if None.
        models: Folder of the fitted models, a file a split.
        docs: Folder of the page.

    Returns:
        One row a target, as in ``reliability.csv``.

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
    done = RunTable(place.file(RUNS), ["level", "constant_level"])
    with one_thread():
        for target in chosen:
            _run_splits(target, tables[target.table], settings, n_splits, done, Path(models), place)
    return write_page(place, docs)


def _run_splits(
    target: Target,
    table: BenchmarkTable,
    settings: CrysXPPRegressor,
    n_splits: int,
    done: RunTable,
    models: Path,
    place: Place,
) -> None:
    """Measure every split of a target that was not measured yet."""
    known = table.targets[target.name].to_numpy(dtype=np.float64)
    usable = np.flatnonzero(~np.isnan(known))
    graphs = CrystalGraphConverter().convert_many([table.structures[row] for row in usable])
    labels = known[usable]
    settings = clone(settings)
    if target.name == "band gap":
        settings.set_params(transform="nonnegative")
    facts = (settings_of(settings), TEST_FRACTION)
    for seed in range(n_splits):
        key = key_of(
            repr((target.name, facts, seed, versions())),
            (graphs.n_atoms, graphs.species_numbers, labels),
        )
        started = time.monotonic()

        def measured(seed: int = seed) -> Iterable[dict[str, Any]]:
            file = models / f"{target.name.replace(' ', '_')}-{seed}.json.gz"
            rows = split_table(settings, graphs, labels, seed=seed, file=file)
            rows = rows.assign(target=target.name, unit=target.unit, seed=seed)
            return [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]

        rows = pd.DataFrame(done.rows_of(key, measured))
        place.say(
            f"{target.name}, split {seed}: 90 % intervals hold "
            f"{(rows['level'] < CONFIDENCE).mean():.1%}   ({time.monotonic() - started:.0f} s)"
        )


def split_table(
    estimator: CrysXPPRegressor,
    graphs: CrystalGraphs,
    labels: Numbers,
    *,
    seed: int,
    file: Path,
) -> pd.DataFrame:
    """Fit on four fifths of the crystals, and look at intervals and domain of the others.

    Args:
        estimator: Its settings; it is left as it was.
        graphs: All crystals of a table.
        labels: Their labels, shape ``(n,)``.
        seed: Of the split, the weights and the order.
        file: The fitted model, which is made if it does not exist.
    """
    order = np.random.default_rng([seed, 13]).permutation(len(labels))
    n_test = round(TEST_FRACTION * len(labels))
    test, train = order[:n_test], order[n_test:]
    if file.exists():
        model = type(estimator).load(file)
        if model.domain_.first:
            model.measure_again(graphs.select(train), labels[train])
    else:
        model = clone(estimator).set_params(seed=seed)
        model.fit(graphs.select(train), labels[train])
        file.parent.mkdir(parents=True, exist_ok=True)
        model.save(file)
    _, rows = split_rows(len(train), fraction=model.validation_fraction, seed=seed)
    held_out = train[rows]
    return interval_table(
        model,
        (graphs.select(test), labels[test]),
        (graphs.select(held_out), labels[held_out]),
    ).round(6)


def interval_table(
    model: CrysXPPRegressor,
    test: tuple[CrystalGraphs, Numbers],
    held_out: tuple[CrystalGraphs, Numbers],
    *,
    learned: Callable[[Numbers], Numbers] = np.asarray,
) -> pd.DataFrame:
    """Intervals of test crystals, one a row, in the units in which the target is learned.

    Args:
        model: With a calibration.
        test: Crystals, and their labels.
        held_out: Those that calibrate.
        learned: Turns labels into what is learned of them.

    Returns:
        ``kind`` (0 elements, 1 binaries, 2 the others), ``in_domain``, ``learned_from``,
        ``error``, half ``width`` of 90 % and ``level``, the confidence above which the interval
        holds the truth; ``constant_width``, ``constant_level`` with one width for all, and of an
        ensemble ``spread_width``, ``spread_level`` by its spread.
    """
    graphs, labels = test
    truth = learned(labels)
    found = model.predict_interval(graphs, confidence=CONFIDENCE)
    domain = model.domain(graphs)
    center = learned(found["prediction"].to_numpy())
    width = learned(found["upper"].to_numpy()) - center
    error = np.abs(center - truth)
    calibration = model.calibration_
    assert calibration is not None  # the splits of the benchmarks hold rows out
    quantile = calibration.threshold(0, confidence=CONFIDENCE, name=model.target_names_[0])
    parts = np.split(graphs.species_numbers, graphs.species_offsets[1:-1])
    table = pd.DataFrame(
        {
            "kind": [min(len(np.unique(part)), 3) - 1 for part in parts],
            "in_domain": domain["in_domain"],
            "learned_from": domain["learned_from"],
            "error": error,
            "width": width,
            "level": _levels(error * quantile / width, np.array(calibration.scores[0])),
        }
    )
    known = np.abs(learned(np.asarray(model.predict(held_out[0]))) - learned(held_out[1]))
    scales = {"constant": (np.ones(len(error)), np.ones(len(known)))}
    if len(model.members_) > 1:
        cpu = torch.device("cpu")
        spread, theirs = (
            outputs_of(model.members_, crystals, cpu)[:, :, 0].std(axis=0, ddof=1)
            for crystals in (graphs, held_out[0])
        )
        middle = np.median(theirs)
        scales["spread"] = (spread / middle + FLOOR, theirs / middle + FLOOR)
    for name, (scale, of_known) in scales.items():
        scores = np.sort(known / of_known)
        rank = min(quantile_rank(len(scores), CONFIDENCE), len(scores))
        table[f"{name}_width"] = scores[rank - 1] * scale
        table[f"{name}_level"] = _levels(error / scale, scores)
    return table


def _levels(scores: Numbers, calibration: Numbers) -> Numbers:
    """The confidence above which an interval holds the truth."""
    return np.asarray(np.searchsorted(calibration, scores - 1e-12) / (len(calibration) + 1))


def summarize(crystals: pd.DataFrame) -> dict[str, Any]:
    """Coverage, widths, ranks and domain of test crystals, those of all splits together.

    Args:
        crystals: From ``interval_table``; with ``seed`` where there are several splits.
    """
    seeds = crystals["seed"] if "seed" in crystals else pd.Series(0, index=crystals.index)
    splits = [part for _, part in crystals.groupby(seeds)]
    inside = crystals["level"] < CONFIDENCE
    third = crystals.groupby(seeds)["width"].rank(pct=True, method="first").mul(3).sub(1e-9) // 1
    outside = ~crystals["in_domain"].astype(bool)
    row: dict[str, Any] = {
        "n_splits": len(splits),
        "n_test": len(crystals),
        "mae": crystals["error"].mean(),
        "coverage": inside.mean(),
        "std_coverage": np.std([(part["level"] < CONFIDENCE).mean() for part in splits]),
        **{f"coverage_third_{t + 1}": inside[third == t].mean() for t in range(3)},
        "coverage_outside": inside[outside].mean(),
        "outside": outside.mean(),
        "mae_outside": crystals.loc[outside, "error"].mean(),
        "mean_width": 2 * crystals["width"].mean(),
        "constant_width": 2 * crystals["constant_width"].mean(),
        "spearman": np.mean([_rank_correlation(part, "width") for part in splits]),
        "constant_coverage": (crystals["constant_level"] < CONFIDENCE).mean(),
        "constant_coverage_outside": (crystals["constant_level"] < CONFIDENCE)[outside].mean(),
        "constant_coverage_third_3": (crystals["constant_level"] < CONFIDENCE)[third == 2].mean(),
    }
    if "spread_width" in crystals:
        row["spread_coverage"] = (crystals["spread_level"] < CONFIDENCE).mean()
        row["spread_width"] = 2 * crystals["spread_width"].mean()
        row["spread_spearman"] = np.mean([_rank_correlation(p, "spread_width") for p in splits])
    for kind, name in enumerate(KINDS):
        own = crystals["kind"] == kind
        row[f"n {name}"] = int(own.sum())
        row[f"mae {name}"] = crystals.loc[own, "error"].mean()
        row[f"outside {name}"] = outside[own].mean()
    return row


def _rank_correlation(part: pd.DataFrame, width: str) -> float:
    return float(part[width].rank().corr(part["error"].rank()))


def write_page(place: Place, docs: str | Path) -> pd.DataFrame:
    """Make tables, pictures and page of the splits that are finished."""
    crystals = pd.read_csv(place.file(RUNS))
    shipped = place.file(SHIPPED)
    calibrated = pd.read_csv(shipped) if shipped.exists() else None
    summary, text = tabulate(crystals, calibrated)
    place.write("reliability", text, reliability=summary)
    write_report(docs, "reliability", tables={}, text=text)
    parts = {str(name): part for name, part in crystals.groupby("target", sort=False)}
    levels = {name: part["level"].to_numpy() for name, part in parts.items()}
    for name, axes in (
        ("reliability", plot_reliability(levels)),
        ("error_by_width", plot_error_by_width(parts)),
    ):
        cast(Any, axes.figure).savefig(Path(docs) / f"{name}.png", dpi=120)
    return summary


def tabulate(crystals: pd.DataFrame, shipped: pd.DataFrame | None) -> tuple[pd.DataFrame, str]:
    """Make the table and the page of finished splits.

    Args:
        crystals: One row a test crystal, with ``target``, ``unit`` and ``seed``.
        shipped: One row a shipped predictor, as ``calibrated.csv``; None without.
    """
    summary = pd.DataFrame(
        [
            {"target": target, "unit": part["unit"].iloc[0], **summarize(part)}
            for target, part in crystals.groupby("target", sort=False)
        ]
    )
    names = {"target": "target", "unit": "unit"}
    blocks = [
        _SPLITS,
        "## Intervals of 90 %",
        markdown_table(_intervals(summary, names)),
        bullets(f"{name}: {text}." for name, text in _COLUMNS.items()),
        "![Coverage against confidence](reliability.png)",
        "![Error against width](error_by_width.png)",
        "## The domain",
        markdown_table(_domain(summary, names)),
        _DOMAIN,
    ]
    if shipped is not None:
        classes = shipped["two_classes"].notna() if "two_classes" in shipped else shipped.index < 0
        blocks += [
            "## The shipped predictors",
            _SHIPPED,
            markdown_table(_intervals(shipped[~classes], {"predictor": "predictor"})),
            markdown_table(_domain(shipped[~classes], {"predictor": "predictor"})),
        ]
        blocks += [_SETS.format_map(row) for _, row in shipped[classes].iterrows()]
    where = f"; every test crystal is in `{RUNS}` ({len(crystals)} rows)"
    return summary, page("How sure: intervals and domain", *blocks, command=COMMAND, where=where)


def _intervals(summary: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Coverage and widths as text, one row a target."""

    def percent(row: pd.Series, *columns: str) -> str:
        return " / ".join(f"{row[column]:.1%}" for column in columns)

    rows = []
    for _, row in summary.iterrows():
        cells = {shown: row[name] for name, shown in names.items()}
        cells |= {
            "splits": f"{row['n_splits']:.0f}",
            "coverage": percent(row, "coverage"),
            "thirds": percent(row, *(f"coverage_third_{third}" for third in (1, 2, 3))),
            "outside": percent(row, "coverage_outside"),
            "width": f"{row['mean_width'] / row['constant_width']:.3f}",
            "rank correlation": f"{row['spearman']:.2f}",
            "one width": percent(
                row,
                "constant_coverage",
                "constant_coverage_outside",
                "constant_coverage_third_3",
            ),
        }
        if "spread_width" in summary:
            cells["spread: coverage"] = percent(row, "spread_coverage")
            cells["spread: width"] = f"{row['spread_width'] / row['constant_width']:.3f}"
            cells["spread: rank correlation"] = f"{row['spread_spearman']:.2f}"
        rows.append(cells)
    return pd.DataFrame(rows)


def _domain(summary: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Shares outside the domain and errors as text, one row a target."""
    rows = []
    for _, row in summary.iterrows():
        cells = {shown: row[name] for name, shown in names.items()}
        cells |= {
            "error": row["mae"],
            "outside": f"{row['outside']:.1%}",
            "error outside": row["mae_outside"],
        }
        for name in KINDS:
            share, error = row[f"outside {name}"], row[f"mae {name}"]
            known = row[f"n {name}"] > 0
            cells[name] = f"{share:.1%}, {error:.3g} ({row[f'n {name}']:.0f})" if known else ""
        rows.append(cells)
    return pd.DataFrame(rows)
