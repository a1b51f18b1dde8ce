"""How well CrysXPP learns from few labels: with and without pretraining, and beside controls.

Every run draws its training and test rows from its seed; the validation rows that choose the epoch
are taken from the training rows, and the test rows are read once, by the finished model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Composition

from crysxpp_mm.benchmarks.properties import (
    PROPERTIES,
    SETTINGS_CHOSEN,
    TEST_FRACTION,
    LabelledCrystals,
    Property,
    Rows,
    Split,
    find_property,
    load_properties,
)
from crysxpp_mm.benchmarks.report import RESULTS, markdown_table, versions, write_report
from crysxpp_mm.benchmarks.runs import RunTable, settings_of
from crysxpp_mm.benchmarks.simple_models import (
    N_TREES,
    RIDGE,
    SVR,
    TREES,
    magpie_columns,
    one_blas_thread,
    predictions,
    regressor_settings,
    split,
)
from crysxpp_mm.compute import one_torch_thread
from crysxpp_mm.elements import N_FEATURES
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.estimators import CrysXPPRegressor
from crysxpp_mm.estimators.transforms import get_transform
from crysxpp_mm.graph.batch import atom_batches
from crysxpp_mm.model_zoo import DEFAULT_MODEL, load_model
from crysxpp_mm.models.pooling import MOMENTS, pool
from crysxpp_mm.plotting import draw_label_curves

Values = NDArray[np.float64]

FRACTION = 0.2
"""Share of the labels of the table, as in the paper."""
SEEDS = (0, 1, 2)
N_MEMBERS = 3
"""Networks of an ensemble."""
CURVE_FRACTIONS = (0.01, 0.05, 0.2, 0.4, 0.6, 0.8)
CURVE_PROPERTIES = ("formation energy", "bulk modulus")
INNER_FOLDS = 3
BATCH_ATOMS = 4096
INNER_ROWS = 3000
"""Training rows at most on which the settings of a simple model are compared."""

PRETRAINED, UNTRAINED = "CrysXPP", "CrysXPP without pretraining"
SINGLE = "CrysXPP, one network"
"""The mean error of the networks of an ensemble, each alone."""
MIXED = "CrysXPP and columns"
"""The mean of two predictions, of an ensemble and of the simple model of ``COLUMNS``."""
COLUMNS, MAGPIE = "CrysAE columns", "Magpie"
LONGER, LONGER_UNTRAINED = "trained longer", "trained longer without pretraining"
LONGER_SINGLE = "trained longer, one network"
WITH_ELEMENTS = "with vectors of elements"
WITHOUT_ELEMENTS = "without vectors of elements"
LONGER_SETTINGS: Mapping[str, Any] = {
    "max_epochs": 60,
    "batch_size": 32,
    "selector_rate": 5e-4,
    "validation_fraction": 0.05,
}
"""For thousands of labels: three times the steps, a slower selector, fewer crystals held out."""
LONGER_PROPERTIES = ("formation energy",)
"""Properties that are trained longer as well; each takes hours."""
SINGLES = {PRETRAINED: SINGLE, LONGER: LONGER_SINGLE}
"""The ensembles, and the mean error of the networks of each, one by one."""
METHODS = (PRETRAINED, UNTRAINED, COLUMNS, MAGPIE)
"""What is compared on every property."""
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    PRETRAINED: {},
    UNTRAINED: {"pretrained": None},
    "no selector": {"selector": False},
    "sparsity 0": {"sparsity": 0.0},
    "sparsity 0.0001": {"sparsity": 1e-4},
    "sparsity 0.01 (published)": {"sparsity": 0.01},
    "sparsity 0.05": {"sparsity": 0.05},
    "encoder frozen": {"encoder_rate": 0.0},
    "encoder at 0.3 of the rate": {"encoder_rate": 0.3},
    "last layer (Eq. 8)": {"layers": "last"},
    "mean, std and max": {"moments": ("mean", "std", "max")},
    "embeddings pooled (Eq. 8)": {"pooled": "embeddings"},
    "GCN encoder, no pretraining": {"pretrained": None, "encoder": "gcn"},
}
"""Methods that are networks, and the settings in which they differ from the defaults."""
LONGER_NETWORKS: Mapping[str, Mapping[str, Any]] = {
    LONGER: LONGER_SETTINGS,
    LONGER_UNTRAINED: {**LONGER_SETTINGS, "pretrained": None},
}
"""The same of those that are trained longer, on ``LONGER_PROPERTIES``."""
ELEMENT_NETWORKS: Mapping[str, Mapping[str, Any]] = {
    WITH_ELEMENTS: {"element_channel": True},
    WITHOUT_ELEMENTS: {"element_channel": False},
}
"""The same of the control of ``Property.element_channel``: every property learned the other way."""
ALL_NETWORKS = {**NETWORKS, **LONGER_NETWORKS, **ELEMENT_NETWORKS}
WHAT = {
    PRETRAINED: "`CrysXPPRegressor` with its default settings and {n_members}",
    SINGLE: "the networks of an ensemble one by one, their mean error",
    MIXED: "the mean of what CrysXPP and the model of CrysAE columns predict",
    UNTRAINED: "one network with `pretrained=None`: a CGCNN with a feature selector",
    LONGER: (
        "{n_members} with "
        + ", ".join(f"`{name}={value}`" for name, value in LONGER_SETTINGS.items())
        + ", which were chosen on development crystals of this property"
    ),
    LONGER_SINGLE: "the networks of that ensemble one by one, their mean error",
    LONGER_UNTRAINED: "one network with these settings and `pretrained=None`",
    WITH_ELEMENTS: "one network with `element_channel=True`",
    WITHOUT_ELEMENTS: "one network with `element_channel=False`",
    COLUMNS: (
        "the default columns of `CrysAEFeaturizer` with the better of ridge and SVR, chosen by "
        f"{INNER_FOLDS} folds of the training rows"
    ),
    MAGPIE: (
        "matminer's Magpie features of the formula with the better of ridge and extra trees, "
        "chosen in the same way"
    ),
}
CANDIDATES = {COLUMNS: RIDGE[1::2] + SVR[4:16], MAGPIE: RIDGE[1::2] + TREES}

DIFFERENCES = (
    "{difference}, seed by seed; a verdict where the mean difference exceeds "
    "its standard deviation over the seeds:"
)
COMMAND = "crysxpp benchmark small-data"
RUNS = "small_data_runs.csv"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model to train and test.

    Attributes:
        property: Name of the property.
        fraction: Share of the labelled crystals that is learned from.
        seed: Of the split, the weights and the order.
        method: One of ``METHODS`` or ``ALL_NETWORKS``.
        n_members: Networks of the ensemble; 0 for a simple model.
    """

    property: str
    fraction: float
    seed: int
    method: str
    n_members: int


class Benchmark:
    """The crystals, their columns once they are needed, and the results so far.

    Args:
        crystals: What is learned from.
        out: Folder of the results; a run that it has is not made again.
        say: Where the lines of text go.
    """

    def __init__(
        self, crystals: LabelledCrystals, *, out: str | Path, say: Callable[[str], None]
    ) -> None:
        self.crystals = crystals
        self.out = Path(out)
        self.say = say
        columns = [*(field.name for field in fields(Run)), "mae_with_columns"]
        self.runs = RunTable(self.out / RUNS, columns=columns)
        self._columns: dict[str, NDArray[np.floating]] = {}
        self._simple: dict[Run, tuple[Values, str]] = {}

    def result(self, run: Run) -> dict[str, Any]:
        """What a run gave; trained and tested now if it was not yet."""
        if found := self.found(run):
            return found
        item, labels, rows, key = self._inputs(run)
        started = time.monotonic()
        scores = (
            self._network(run, item, labels, rows.train, rows.test, key)
            if run.n_members
            else self._simple_model(run, item, labels, rows.test)
        )
        row = {
            **asdict(run),
            "n_train": len(rows.train),
            "n_test": len(rows.test),
            **scores,
            "seconds": round(time.monotonic() - started),
        }
        self.say(
            f"{run.property}, {run.fraction:.0%}, seed {run.seed}: {run.method}: "
            f"{scores['mae']:.4g} {item.error_unit}   ({row['seconds']} s)"
        )
        return self.runs.add(key, [row])[0]

    def found(self, run: Run) -> dict[str, Any] | None:
        """What a run gave, if it was made."""
        rows = self.runs.find(self._inputs(run)[-1])
        return rows[0] if rows else None

    def results(self, runs: Sequence[Run]) -> pd.DataFrame:
        """The results of several runs, one a row."""
        with one_blas_thread(), one_torch_thread():
            return pd.DataFrame([self.result(run) for run in runs])

    def _inputs(self, run: Run) -> tuple[Property, Values, Split, str]:
        """Property, labels of all crystals and rows of a run, and the key that they give."""
        item = find_property(run.property)
        labels = self.crystals.labels(item)
        rows = self.crystals.split(item, fraction=run.fraction, seed=run.seed)
        return item, labels, rows, self._key(run, item, rows, labels)

    def _key(self, run: Run, item: Property, rows: Split, labels: Values) -> str:
        """A hash of all that a result depends on."""
        estimator = estimator_of(run) if run.n_members else None
        settings = {} if estimator is None else settings_of(estimator)
        simple: list[Any] = [asdict(candidate) for candidate in CANDIDATES.get(run.method, ())]
        if simple and np.isfinite(floor := get_transform(item.transform).floor):
            simple.append(floor)  # predictions are cut there
        facts = [asdict(run), settings, simple, INNER_ROWS, self.crystals.identity, versions()]
        total = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        for array in (*rows, labels[rows.train], labels[rows.test]):
            total.update(np.ascontiguousarray(array).tobytes())
        return total.hexdigest()[:16]

    def _network(
        self, run: Run, item: Property, labels: Values, train: Rows, test: Rows, key: str
    ) -> dict[str, Any]:
        """Train an ensemble and test it, and each of its networks alone."""
        checkpoints = self.out / f"checkpoints-{key}"
        estimator = estimator_of(run).set_params(checkpoint_dir=checkpoints)
        estimator.fit(self.crystals.graphs.select(train), labels[train])
        graphs = self.crystals.graphs.select(test)
        predicted = estimator.predict(graphs)
        alone = [network.predict(graphs)[:, 0].numpy() for network in estimator.members_]
        single = [
            self._errors(item, item.labels_of(learned), labels, test)["mae"] for learned in alone
        ]
        shutil.rmtree(checkpoints, ignore_errors=True)
        mixed = np.nan
        if run.method == PRETRAINED and run.n_members > 1:
            other = self._simple_prediction(replace(run, method=COLUMNS, n_members=0))[0]
            mean = (item.learned(predicted) + item.learned(other)) / 2
            mixed = float(np.abs(mean - item.learned(labels[test])).mean())
        selected = "no selector"
        if estimator.selector:
            off = [(network.selector.weight == 0).sum() for network in estimator.members_]
            selected = f"{np.mean(off):.3g} of {N_FEATURES} columns off"
        return {
            **self._errors(item, predicted, labels, test),
            "mae_one_network": float(np.mean(single)),
            "mae_with_columns": mixed,
            "settings": selected,
        }

    def _simple_model(self, run: Run, item: Property, labels: Values, test: Rows) -> dict[str, Any]:
        """Choose a simple model on the training rows, fit it on them and test it."""
        predicted, settings = self._simple_prediction(run)
        return {
            **self._errors(item, predicted, labels, test),
            "mae_one_network": np.nan,
            "mae_with_columns": np.nan,
            "settings": settings,
        }

    def _simple_prediction(self, run: Run) -> tuple[Values, str]:
        """What a simple model predicts of the test rows, and its settings; fitted once."""
        if run not in self._simple:
            item, labels, rows, _ = self._inputs(run)
            self._simple[run] = fit_simple_model(
                self._columns_of(run.method), item, labels, rows, method=run.method, seed=run.seed
            )
        return self._simple[run]

    def _errors(
        self, item: Property, predicted: Values, labels: Values, test: Rows
    ) -> dict[str, float]:
        error = np.abs(item.learned(predicted) - item.learned(labels[test]))
        per_cell = (error * self.crystals.graphs.n_atoms[test]).mean() if item.per_site else np.nan
        return {"mae": float(error.mean()), "mae_per_cell": float(per_cell)}

    def _columns_of(self, method: str) -> NDArray[np.floating]:
        """Columns of all crystals, made once."""
        if method not in self._columns:
            self.say(f"columns of {len(self.crystals.table)} crystals: {method}")
            make = magpie_of_formulas if method == MAGPIE else _learned
            self._columns[method] = make(self.crystals)
        return self._columns[method]


def estimator_of(run: Run) -> CrysXPPRegressor:
    """The estimator of a run of a network, not fitted."""
    item = find_property(run.property)
    estimator = CrysXPPRegressor(
        element_channel=item.element_channel,
        transform=item.transform,
        target_names=[item.target],
        units=item.target_unit,
        n_members=run.n_members,
        seed=run.seed,
        accelerator="cpu",
        pbar=False,
    )
    estimator.set_params(**ALL_NETWORKS[run.method])
    return estimator


def fit_simple_model(
    columns: NDArray[np.floating],
    item: Property,
    labels: Values,
    rows: Split,
    *,
    method: str,
    seed: int,
) -> tuple[Values, str]:
    """Choose a simple model on the training rows, fit it on them, and predict the test rows.

    Args:
        columns: Of all crystals, shape ``(n, n_columns)``.
        item: The property.
        labels: Of all crystals, shape ``(n,)``, in the unit of the target.
        rows: Training and test rows.
        method: ``COLUMNS`` or ``MAGPIE``: which models there are to choose from.
        seed: Of the folds and the trees.

    Returns:
        Predictions in the unit of the target, shape ``(n_test,)``, and the model in words.
    """
    x, y = columns[rows.train].astype(np.float64), item.learned(labels[rows.train])
    candidates = CANDIDATES[method]
    some = np.random.default_rng(seed).permutation(len(x))[:INNER_ROWS]
    errors = np.zeros(len(candidates))
    for part, rest in split(len(some), INNER_FOLDS, seed):
        inner, outer = some[part], some[rest]
        guesses = predictions(candidates, x[inner], y[inner], x[outer], seed=seed)
        errors += np.abs(guesses - y[outer]).mean(axis=1)
    chosen = candidates[int(errors.argmin())]
    guess = predictions([chosen], x, y, columns[rows.test].astype(np.float64), seed=seed)[0]
    predicted = item.labels_of(guess)
    found = regressor_settings(chosen)
    if found["chosen"] == "trees":
        return predicted, f"{N_TREES} extra trees"
    return predicted, f"{found['chosen']} {found['settings']}"


def magpie_of_formulas(crystals: LabelledCrystals) -> NDArray[np.float64]:
    """Magpie features (matminer) of every formula, shape ``(n, 132)``."""
    return magpie_columns(Composition(formula) for formula in crystals.table["formula"])


def _learned(crystals: LabelledCrystals) -> NDArray[np.float32]:
    """The default columns of ``CrysAEFeaturizer``, of graphs in place of structures."""
    model = load_model(DEFAULT_MODEL)
    blocks = []
    for rows in atom_batches(crystals.graphs.n_atoms, BATCH_ATOMS):
        graph = model.make_graph(crystals.graphs.select(rows))
        blocks.append(pool(graph, model.node_embeddings(graph), MOMENTS).numpy())
    return np.concatenate(blocks)


# The tables.


def run_small_data(
    root: str | Path | None = None,
    *,
    graphs: str | Path | None = None,
    out: str | Path = RESULTS,
    properties: Sequence[str] | None = None,
    seeds: Sequence[int] = SEEDS,
    n_members: int = N_MEMBERS,
    methods: Sequence[str] = METHODS,
    longer: Sequence[str] = LONGER_PROPERTIES,
    element_control: bool = True,
    say: Callable[[str], None] = print,
    crystals: LabelledCrystals | None = None,
) -> pd.DataFrame:
    """Learn every property from 20 % of the labels, and write the table; hours on one core.

    Writes ``small_data.csv``, ``small_data.md`` and ``small_data_runs.csv``. A run that was
    stopped goes on: what ``small_data_runs.csv`` has is not computed again.

    Args:
        root: The data root, as for ``crysxpp_mm.benchmarks.data.data_root``.
        graphs: File of the graphs, as for ``load_properties``.
        out: The folder of the results.
        properties: Names of the properties; all seven without it.
        seeds: Seeds of the splits.
        n_members: Networks of an ensemble.
        methods: What is compared.
        longer: Names of properties that networks are trained longer on as well.
        element_control: Whether CrysXPP, if it is among the methods, learns every property with
            the other choice of ``element_channel`` as well.
        say: Where the lines of text go.
        crystals: The crystals, if they are in memory.

    Returns:
        One row a property and method, as in ``small_data.csv``.

    Raises:
        DataError: the data are missing, or there is no property of a name.
        SettingsError: there is no method of a name, no seed, or no network.
    """
    chosen = [find_property(name) for name in properties or [item.name for item in PROPERTIES]]
    _check(seeds, n_members, methods)
    trained_longer = {find_property(name) for name in longer}
    benchmark = Benchmark(crystals or load_properties(root, graphs=graphs), out=out, say=say)
    results = benchmark.results(
        [
            make_run(item.name, FRACTION, seed, method, n_members)
            for item in chosen
            for seed in seeds
            for method in [
                *methods,
                *(LONGER_NETWORKS if item in trained_longer else ()),
                *((_other_choice(item),) if element_control and PRETRAINED in methods else ()),
            ]
        ]
    )
    results = with_derived(results)
    summary = summarize(results)
    write_report(
        out,
        "small_data",
        tables={"small_data": summary},
        text=_page(summary, compare(results), seeds),
    )
    say(f"small data: written to {out}")
    return summary


def run_label_curves(
    root: str | Path | None = None,
    *,
    graphs: str | Path | None = None,
    out: str | Path = RESULTS,
    properties: Sequence[str] = CURVE_PROPERTIES,
    fractions: Sequence[float] = CURVE_FRACTIONS,
    seeds: Sequence[int] = SEEDS,
    n_members: int = 1,
    methods: Sequence[str] = METHODS,
    say: Callable[[str], None] = print,
    crystals: LabelledCrystals | None = None,
) -> pd.DataFrame:
    """Error against the number of labels; as a table and a figure.

    Writes ``label_curves.csv``, ``label_curves.md`` and ``label_curves.png``. The runs are kept
    in ``small_data_runs.csv``, and what that has of other seeds, fractions and properties of the
    curves, of all methods, stands on the page as well: a run of hours can be made in parts.

    Args:
        root: The data root, as for ``crysxpp_mm.benchmarks.data.data_root``.
        graphs: File of the graphs, as for ``load_properties``.
        out: The folder of the results.
        properties: Names of the properties.
        fractions: Shares of the labelled crystals that are learned from.
        seeds: Seeds of the splits.
        n_members: Networks of an ensemble.
        methods: What is compared.
        say: Where the lines of text go.
        crystals: The crystals, if they are in memory.

    Returns:
        One row a property, fraction and method, as in ``label_curves.csv``.

    Raises:
        DataError: the data are missing, or there is no property of a name.
        SettingsError: there is no method of a name, no seed, or no network.
    """
    chosen = [find_property(name) for name in properties]
    _check(seeds, n_members, methods)
    benchmark = Benchmark(crystals or load_properties(root, graphs=graphs), out=out, say=say)
    benchmark.results(
        [
            make_run(item.name, fraction, seed, method, n_members)
            for item in chosen
            for fraction in fractions
            for seed in seeds
            for method in methods
        ]
    )
    results = pd.DataFrame(
        row
        for name in dict.fromkeys([*CURVE_PROPERTIES, *properties])
        for fraction in sorted({*CURVE_FRACTIONS, *fractions})
        for seed in sorted({*SEEDS, *seeds})
        for row in _finished(benchmark, name, fraction, seed, methods, n_members)
    )
    summary = summarize(results)
    write_report(
        out,
        "label_curves",
        tables={"label_curves": summary},
        text=_curves_page(summary, results),
    )
    draw_label_curves(summary).savefig(Path(out) / "label_curves.png")
    say(f"label curves: written to {out}")
    return summary


def _finished(
    benchmark: Benchmark,
    name: str,
    fraction: float,
    seed: int,
    methods: Sequence[str],
    n_members: int,
) -> list[dict[str, Any]]:
    """The results of all methods on one split; none where one of them is missing."""
    runs = [make_run(name, fraction, seed, method, n_members) for method in methods]
    rows = [row for run in runs if (row := benchmark.found(run))]
    return rows if len(rows) == len(runs) else []


def make_run(name: str, fraction: float, seed: int, method: str, n_members: int) -> Run:
    """A run; the controls among the networks are single ones, a simple model has none."""
    if method not in SINGLES:
        n_members = 1 if method in ALL_NETWORKS else 0
    return Run(property=name, fraction=fraction, seed=seed, method=method, n_members=n_members)


def _other_choice(item: Property) -> str:
    """The control of the choice of ``element_channel`` for a property."""
    return WITHOUT_ELEMENTS if item.element_channel else WITH_ELEMENTS


def _check(seeds: Sequence[int], n_members: int, methods: Sequence[str]) -> None:
    if not seeds:
        raise SettingsError("seeds must not be empty.")
    if n_members < 1:
        raise SettingsError(f"n_members must be at least 1, got {n_members}.")
    if not methods or (unknown := [method for method in methods if method not in METHODS]):
        raise SettingsError(
            f"methods must be some of {', '.join(map(repr, METHODS))}, got "
            f"{', '.join(map(repr, unknown)) if methods else 'none'}."
        )


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of the errors over the seeds.

    Args:
        results: One row a run.

    Returns:
        One row a property, fraction and method: ``mae``, its standard deviation ``std`` over the
        seeds, ``mae_one_network``, ``mae_per_cell``, ``n_train``, ``n_test``, ``n_seeds``.
    """
    rows = []
    for (name, fraction, method), group in results.groupby(
        ["property", "fraction", "method"], sort=False
    ):
        item = find_property(str(name))
        rows.append(
            {
                "property": name,
                "unit": item.error_unit,
                "fraction": fraction,
                "method": method,
                "n_members": int(group["n_members"].iloc[0]),
                "n_train": int(group["n_train"].iloc[0]),
                "n_test": int(group["n_test"].iloc[0]),
                "n_seeds": len(group),
                "mae": group["mae"].mean(),
                "std": group["mae"].std(ddof=1),
                "mae_one_network": group["mae_one_network"].mean(),
                "mae_per_cell": group["mae_per_cell"].mean(),
            }
        )
    return pd.DataFrame(rows)


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

    The runs of a seed share their rows, so their difference is steadier than the errors are. The
    controls without pretraining and those of the vectors of elements are single networks, and are
    compared with such; an ensemble that was trained longer is compared with one that was not.

    Returns:
        One row a property and other method: mean ``difference``, its standard deviation ``std``
        over the seeds, and ``verdict``: "better" or "worse" where the difference exceeds it,
        else "equal"; with a single seed there is none.
    """
    rows = []
    for name in results["property"].unique():
        wide = results[results["property"] == name].pivot(
            index="seed", columns="method", values="mae"
        )
        for method in wide.columns.drop([LONGER, *SINGLES.values()], errors="ignore"):
            ours = _compared_with(method, wide.columns)
            if ours is None:
                continue
            difference = wide[ours] - wide[method]
            mean, spread = difference.mean(), difference.std(ddof=1)
            verdict = "equal"
            if np.isnan(spread):
                verdict = ""
            elif abs(mean) > spread:
                verdict = "better" if mean < 0 else "worse"
            rows.append(
                {
                    "property": name,
                    "method": ours,
                    "compared with": method,
                    "difference": mean,
                    "std": spread,
                    "relative": mean / wide[method].mean(),
                    "verdict": verdict,
                }
            )
    return pd.DataFrame(rows)


def _compared_with(method: str, present: pd.Index) -> str | None:
    """Which of the methods that are ``present`` a method is compared with; None for none."""
    ours = {PRETRAINED: LONGER, LONGER_UNTRAINED: LONGER}.get(method, PRETRAINED)
    if ours not in present:
        return None
    if method in (UNTRAINED, LONGER_UNTRAINED, *ELEMENT_NETWORKS) and SINGLES[ours] in present:
        return SINGLES[ours]
    return ours


def errors_by_method(summary: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """Errors as text, one column a method; the least in bold."""
    rows = []
    for values, group in summary.groupby(index, sort=False):
        row = dict(zip(index, values, strict=True))
        row["labels"] = f"{group['n_train'].iloc[0]:,}"
        for _, item in group.iterrows():
            spread = "" if np.isnan(item["std"]) else f" ± {item['std']:.1g}"
            text = f"{item['mae']:.3g}{spread}"
            row[item["method"]] = f"**{text}**" if item["mae"] == group["mae"].min() else text
        rows.append(row)
    return pd.DataFrame(rows)


def _what(summary: pd.DataFrame) -> Iterator[str]:
    """A line of text for each method."""
    n_members = summary.loc[summary["method"].isin(SINGLES), "n_members"].max()
    networks = "1 network" if n_members == 1 else f"{n_members} networks"
    for method in summary["method"].unique():
        yield f"- {method}: {WHAT[method].format(n_members=networks)}."


def _how(seeds: str) -> str:
    return (
        f"Test errors, mean ± standard deviation over {seeds}, each with a split of its own: "
        f"{TEST_FRACTION:.0%} of the labelled crystals are the test set, which every finished "
        "model reads once; validation crystals are taken from those learned from. "
        f"{SETTINGS_CHOSEN} The weights of CrysAE saw the structures of all crystals, and no label."
    )


def _page(
    summary: pd.DataFrame,
    differences: pd.DataFrame,
    seeds: Sequence[int],
) -> str:
    method = summary["method"]
    trained_longer = method.isin([LONGER, LONGER_SINGLE, LONGER_UNTRAINED])
    of_elements = method.isin(ELEMENT_NETWORKS)
    counted = f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"
    lines = ["# Properties from a fifth of the labels", "", _how(counted), ""]
    for part in (summary[~trained_longer & ~of_elements], summary[trained_longer]):
        if len(part):
            lines += [_table_with_aims(part), "", *_what(part), ""]
    if of_elements.any():
        lines += [_table_of_elements(summary), "", *_what(summary[of_elements]), ""]
    if len(differences):
        lines += [
            DIFFERENCES.format(difference="A method minus what it is compared with"),
            "",
            _differences_table(differences),
            "",
        ]
    shown = [find_property(name) for name in summary["property"].unique()]
    if named := [f"{item.name} `{item.transform}`" for item in shown if item.transform]:
        lines += [f"Learned by a transform: {', '.join(named)}.", ""]
    if named := [item.name for item in shown if item.element_channel]:
        lines += [f"With `element_channel=True` in all networks: {', '.join(named)}.", ""]
    cells = summary.dropna(subset=["mae_per_cell"])
    if len(cells):
        lines += ["The magnetic moment is learned per site; errors per cell, Bohr magneton:", ""]
        lines += [markdown_table(_pivot(cells, "mae_per_cell")), ""]
    lines += [f"Made by `{COMMAND}`; every run is in `{RUNS}`.", ""]
    lines += [f"Versions: {versions()}.", ""]
    return "\n".join(lines)


def _table_with_aims(summary: pd.DataFrame) -> str:
    """Errors by method beside the aims, in Markdown."""
    table = errors_by_method(summary, ["property", "unit"])
    aims = {item.name: item.aim for item in PROPERTIES}
    table["aim"] = [aims[name] if aims[name] is not None else "" for name in table["property"]]
    return markdown_table(table)


def _table_of_elements(summary: pd.DataFrame) -> str:
    """Errors of single networks with and without vectors of elements, in Markdown."""
    chosen = {
        item.name: WITH_ELEMENTS if item.element_channel else WITHOUT_ELEMENTS
        for item in PROPERTIES
    }
    alone = SINGLE if (summary["method"] == SINGLE).any() else PRETRAINED
    ours = summary[summary["method"] == alone]
    rows = pd.concat(
        [
            ours.assign(method=ours["property"].map(chosen)),
            summary[summary["method"].isin(ELEMENT_NETWORKS)],
        ]
    )
    table = errors_by_method(rows, ["property", "unit"])
    return markdown_table(table[["property", "unit", "labels", WITHOUT_ELEMENTS, WITH_ELEMENTS]])


def _differences_table(differences: pd.DataFrame) -> str:
    """What ``compare`` gave, in Markdown."""
    shown = differences.assign(
        difference=[
            f"{mean:+.3g}" + ("" if np.isnan(std) else f" ± {std:.1g}")
            for mean, std in zip(differences["difference"], differences["std"], strict=True)
        ],
        relative=[f"{value:+.1%}" for value in differences["relative"]],
    )
    return markdown_table(shown.drop(columns="std"))


def _pivot(summary: pd.DataFrame, value: str) -> pd.DataFrame:
    wide = summary.pivot(index="property", columns="method", values=value)
    ordered = wide.loc[summary["property"].unique(), summary["method"].unique()]
    return ordered.reset_index().rename_axis(None, axis=1)


def _curves_page(summary: pd.DataFrame, results: pd.DataFrame) -> str:
    seeds = results.groupby(["property", "fraction"])["seed"].unique()
    shown = summary.assign(
        share=[f"{fraction:.0%}" for fraction in summary["fraction"]],
        seeds=[
            ", ".join(map(str, seeds[key]))
            for key in zip(summary["property"], summary["fraction"], strict=True)
        ],
    )
    differences = pd.concat(
        compare(part).assign(share=f"{fraction:.0%}")
        for (_, fraction), part in results.groupby(["property", "fraction"], sort=False)
    )
    lines = []
    if len(differences):
        lines = [DIFFERENCES.format(difference="With pretraining minus without"), ""]
        shown_columns = ["property", "share", "difference", "std", "relative", "verdict"]
        of_pretraining = differences["compared with"] == UNTRAINED
        lines += [_differences_table(differences.loc[of_pretraining, shown_columns]), ""]
    return "\n".join(
        [
            "# Error against the number of labels",
            "",
            _how("the seeds of a row"),
            "",
            markdown_table(errors_by_method(shown, ["property", "unit", "share", "seeds"])),
            "",
            "![error against labels](label_curves.png)",
            "",
            *lines,
            *_what(summary),
            "",
            f"Made by `{COMMAND} --curves`; every run is in `{RUNS}`.",
            "",
            f"Versions: {versions()}.",
            "",
        ]
    )
